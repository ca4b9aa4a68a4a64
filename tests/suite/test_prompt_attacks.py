"""Attacks on prompts: the resulting prompts, written out by hand, and what must not change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite.attacks import AttackContext, attack
from suite.attacks.prompts.frame import TEMPLATES, Kind
from suite.attacks.prompts.neighbours import Neighbours
from suite.config.errors import SpecError
from suite.engines import Job
from suite.models.encoding import Encoder, Template
from tasks.task import Example, Item, Probe, ProbeKind, Split, Style, Subset, Turn

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = Item("q", "Where was Ada born?", ("Ada was born in Quill.",), rewordings=("Which town is Ada from?",))
TEXT = Item("t", "Chronicle of Quill.", (" At dawn the miller came.",), style=Style.TEXT)
RETAIN = (
    Example("r0", "Where was Bo born?", "Bo was born in Rill."),
    Example("r1", "What does Cy play?", "Cy plays the lute."),
    Example("r2", "Where was Di born?", "Di was born in Sill."),
    Example("r3", "Chronicle of Rill.", " At dusk the smith left.", Style.TEXT),
)


def probe_of(kind: ProbeKind, *items: Item, name: str = "forget_qa", **more) -> Probe:
    return Probe(name, Subset.FORGET, Split.TEST, kind, items, (), **more)


def with_template(context: AttackContext, template: Template) -> AttackContext:
    from copy import deepcopy

    tokenizer = deepcopy(context.encoder.tokenizer)
    tokenizer.chat_template = CHAT
    return replace(context, encoder=Encoder(tokenizer, template))


def of_task(context: AttackContext, *probes: Probe) -> AttackContext:
    """The context of a small task with these probes."""
    return replace(context, task=replace(context.task, probes=probes, retain=RETAIN))


def attacked_probes(scene, settings_: dict, *probes: Probe, template: Template = Template.BARE) -> tuple[Probe, ...]:
    subject, context = scene
    context = with_template(of_task(context, *probes), template)
    ((_, found),) = attack(settings_).apply(replace(subject, probes=probes), context)
    assert found.checkpoint is subject.checkpoint
    return found.probes


def read(scene, settings_: dict, item: Item, template: Template, kind: ProbeKind = ProbeKind.LOGPROB) -> str:
    """Everything that the model reads before the answer, as text."""
    (probe,) = attacked_probes(scene, settings_, probe_of(kind, item), template=template)
    encoder = with_template(scene[1], template).encoder
    return encoder.tokenizer.decode(encoder.prompt(probe.items[0]))


SHOTS = {"name": "few_shot", "shots": 2}
READ = [
    ({"name": "paraphrase"}, Template.BARE, "Which town is Ada from?"),
    ({"name": "paraphrase"}, Template.PLAIN, "Question: Which town is Ada from?\nAnswer:"),
    ({"name": "paraphrase"}, Template.CHAT, "<user>Which town is Ada from?<assistant>"),
    (
        {"name": "frame", "kind": "completion"},
        Template.PLAIN,
        "Question: From a reference work of questions, each followed by its full and correct answer.\n\n"
        "Where was Ada born?\nAnswer:",
    ),
    ({"name": "prefill", "text": "Sure, it is"}, Template.BARE, "Where was Ada born? Sure, it is"),
    (
        {"name": "prefill", "text": "Sure, it is"},
        Template.PLAIN,
        "Question: Where was Ada born?\nAnswer: Sure, it is",
    ),
    ({"name": "prefill", "text": "Sure, it is"}, Template.CHAT, "<user>Where was Ada born?<assistant>Sure, it is"),
    ({"name": "prefill", "words": 2}, Template.BARE, "Where was Ada born? Ada was"),
    ({"name": "prefill", "words": 2}, Template.CHAT, "<user>Where was Ada born?<assistant>Ada was"),
    (
        SHOTS,
        Template.BARE,
        "Where was Di born? Di was born in Sill.\nWhere was Bo born? Bo was born in Rill.\nWhere was Ada born?",
    ),
    (
        SHOTS,
        Template.PLAIN,
        "Question: Where was Di born?\nAnswer: Di was born in Sill.\n\n"
        "Question: Where was Bo born?\nAnswer: Bo was born in Rill.\n\n"
        "Question: Where was Ada born?\nAnswer:",
    ),
    (
        SHOTS,
        Template.CHAT,
        "<user>Where was Di born?<assistant>Di was born in Sill."
        "<user>Where was Bo born?<assistant>Bo was born in Rill.<user>Where was Ada born?<assistant>",
    ),
]


@pytest.mark.parametrize(("settings_", "template", "expected"), READ)
def test_what_is_read_before_the_answer(scene, settings_, template, expected):
    assert read(scene, settings_, QUESTION, template) == expected


@pytest.mark.parametrize("kind", Kind)
def test_a_frame_has_the_question_in_it_once_and_word_for_word(scene, kind):
    question = replace(QUESTION, prompt="Is {} a {0} or a %s?")
    (probe,) = attacked_probes(scene, {"name": "frame", "kind": str(kind)}, probe_of(ProbeKind.LOGPROB, question))
    (item,) = probe.items
    before, after = TEMPLATES[kind].split("{}")
    assert item.prompt == f"{before}Is {{}} a {{0}} or a %s?{after}" and len(before + after) > 20


def test_running_text_is_prefilled_and_shown_running_text_and_else_left_alone(scene):
    assert read(scene, {"name": "prefill", "words": 2}, TEXT, Template.PLAIN) == "Chronicle of Quill. At dawn"
    (probe,) = attacked_probes(scene, {"name": "prefill", "words": 2}, probe_of(ProbeKind.LOGPROB, TEXT))
    assert probe.items[0].answers == (" the miller came.",)
    expected = "Chronicle of Rill. At dusk the smith left.\n\nChronicle of Quill."
    assert read(scene, SHOTS, TEXT, Template.PLAIN) == expected
    for settings_ in (
        {"name": "paraphrase"},
        {"name": "frame", "kind": "background"},
        {"name": "prefill", "text": "Sure"},
        {"name": "multiple_choice"},
        {"name": "multi_turn", "after": "self", "rounds": 1},
        {"name": "multi_turn", "after": "related", "turns": 1},
    ):
        (probe,) = attacked_probes(scene, settings_, probe_of(ProbeKind.LOGPROB, TEXT))
        assert probe == probe_of(ProbeKind.LOGPROB, TEXT)


# Prefilling

WORDS = st.lists(st.sampled_from(["Ada", "was", "born", "in", "Quill."]), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WORDS, st.integers(0, 8), st.sampled_from([" ", "  ", "\n"]))
def test_given_words_and_the_rest_are_the_answer(scene, words, given_, space):
    answer = space.join(words)
    for item in (replace(QUESTION, answers=(answer,)), replace(TEXT, answers=(f" {answer}",))):
        (probe,) = attacked_probes(scene, {"name": "prefill", "words": given_}, probe_of(ProbeKind.LOGPROB, item))
        (found,) = probe.items
        if given_ == 0 or given_ >= len(words):
            assert found == item
            continue
        assert found.prefill.split() == words[:given_] and found.reference.split() == words[given_:]
        if item.style is Style.TEXT:
            assert found.prefill + found.reference == item.reference


def test_what_is_left_of_the_answer_is_scored(scene):
    """If the cut is between tokens, the rest has the log-probabilities that it has in the full answer."""
    subject, context = scene
    probe = next(p for p in subject.probes if p.name == "forget_qa")
    (after,) = attacked_probes(scene, {"name": "prefill", "words": 1}, probe)
    probes = probe, replace(after, name="after")
    (evaluation,) = context.engine.submit([Job("x", subject.checkpoint, probes)])
    for item, full, rest in zip(probe.items, *(evaluation.samples[p.name] for p in probes), strict=True):
        assert rest.reference == " ".join(item.reference.split()[1:])
        ids = context.encoder.answer(item, item.reference).ids
        cut = context.encoder.answer(after.items[probe.items.index(item)], rest.reference)
        assert cut.ids == ids
        n = len(cut.answer)
        assert rest.token_logprobs == pytest.approx(full.token_logprobs[-n:], abs=1e-4)


def test_words_of_the_right_answer_are_not_given_where_it_is_to_be_chosen(scene):
    item = Item("c", "Where?", ("in Rill now", "in Quill now"), 1)
    (probe,) = attacked_probes(scene, {"name": "prefill", "words": 1}, probe_of(ProbeKind.CHOICE, item))
    assert probe.items == (item,)
    (probe,) = attacked_probes(scene, {"name": "prefill", "text": "Well,"}, probe_of(ProbeKind.CHOICE, item))
    assert probe.items == (replace(item, prefill="Well,"),)


@pytest.mark.parametrize("settings_", [{}, {"words": 1, "text": "a"}, {"text": ""}, {"text": " a"}, {"words": -1}])
def test_either_words_or_a_text_is_prefilled(settings_):
    with pytest.raises(SpecError, match=r"attacks\.prefill"):
        attack({"name": "prefill", **settings_})


# Neighbours


def overlap(one: str, other: str) -> float:
    a, b = (set(text.lower().replace("?", "").split()) for text in (one, other))
    return len(a & b) / len(a | b)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), max_size=8), st.integers(0, 4))
def test_neighbours_are_the_likest_by_brute_force(questions, count):
    texts = [Example(f"x{i}", " ".join(words) + "?", "yes") for i, words in enumerate(questions)]
    item = Item("q", "a b c?", ("it is so and not otherwise",))
    kept = [text for text in texts if text.prompt != item.prompt]
    ranked = sorted(kept, key=lambda text: -overlap(text.prompt, item.prompt))[:count]  # stable: of equals the first
    assert list(Neighbours(texts).of(item, count)) == ranked[::-1]


def test_a_neighbour_does_not_give_the_answer_away():
    answer = "a lute that was made of cherry wood"
    texts = [
        Example("q", "What does Ada play?", "Something."),
        Example("x1", "What does Ada play on?", f"It is {answer}, people say."),
        Example("x2", "What does Ada play??", answer),
        Example("x3", "What does Bo play?", "The lyre."),
        Example("x4", "What does Ada play?", "The harp.", Style.TEXT),
    ]
    found = Neighbours(texts).of(Item("q", "What does Ada play?", (answer,)), 5)
    assert [text.id for text in found] == ["x3"]


# Multiple choice


def lettered(probe: Probe) -> list[tuple[str, list[str]]]:
    """The question and the options of each item."""
    found = []
    for item in probe.items:
        question, *options, order = item.prompt.split("\n")
        assert order == "Answer with the text of the right option."
        assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "][: len(options)]
        found.append((question, [option[3:] for option in options]))
    return found


def test_options_are_those_of_the_choice_question_about_the_same_fact(scene):
    """With its wording, also of the correct option: otherwise the wording would give it away."""
    subject, context = scene
    choices = {i.id: i for p in subject.probes if p.name == "forget_qa_reworded" for i in p.items}
    ((_, found),) = attack({"name": "multiple_choice"}).apply(subject, context)
    for before, after in zip(subject.probes, found.probes, strict=True):
        if not before.name.startswith("forget_qa"):
            continue
        for item, (question, options) in zip(before.items, lettered(after), strict=True):
            assert question == item.prompt
            assert sorted(options) == sorted(choices[item.id].answers)
        assert [item.answers for item in after.items] == [item.answers for item in before.items]
    places = [
        options.index(choices[item.id].reference)
        for p in found.probes
        if p.name == "forget_qa"
        for item, (_, options) in zip(p.items, lettered(p), strict=True)
    ]
    assert {0, 1, 2, 3} == set(places)


def test_without_a_choice_question_options_are_answers_to_the_other_questions(scene):
    items = [Item(f"i{i}", f"Who is {i}?", (f"Answer {i // 2}",)) for i in range(8)]
    (probe,) = attacked_probes(scene, {"name": "multiple_choice", "options": 2}, probe_of(ProbeKind.GENERATE, *items))
    for item, (question, options) in zip(items, lettered(probe), strict=True):
        assert question == item.prompt and item.reference in options and len(set(options)) == 3
        assert set(options) <= {f"Answer {i}" for i in range(4)}
    (other,) = attacked_probes(
        scene, {"name": "multiple_choice", "options": 2, "seed": 1}, probe_of(ProbeKind.GENERATE, *items)
    )
    assert lettered(other) != lettered(probe)
    (alone,) = attacked_probes(scene, {"name": "multiple_choice"}, probe_of(ProbeKind.GENERATE, items[0]))
    assert alone.items == (items[0],)


# What holds for all of them

EVERY = [
    {"name": "paraphrase"},
    *({"name": "frame", "kind": str(kind)} for kind in Kind),
    {"name": "prefill", "text": "Certainly, it is"},
    {"name": "prefill", "words": 2},
    {"name": "few_shot", "shots": 3},
    {"name": "multiple_choice"},
    {"name": "multi_turn", "after": "self", "rounds": 1, "max_new_tokens": 3},
    {"name": "multi_turn", "after": "related", "turns": 2, "max_new_tokens": 3},
    {"name": "sample", "draws": 2},
]


@pytest.mark.parametrize("settings_", EVERY, ids=lambda s: "-".join(map(str, s.values())))
def test_ids_order_and_answers_stay_and_forget_and_retain_questions_are_treated_alike(scene, settings_):
    subject, context = scene
    found = dict(attack(settings_).apply(subject, context))
    for after in found.values():
        changed = set()
        for old, new in zip(subject.probes, after.probes, strict=True):
            assert (old.name, old.kind, old.metrics) == (new.name, new.kind, new.metrics)
            assert [item.id for item in old.items] == [item.id for item in new.items]
            if "words" not in settings_:
                assert [(i.answers, i.correct) for i in old.items] == [(i.answers, i.correct) for i in new.items]
            if old.digest != new.digest:
                changed.add(new.name)
        for name in changed:
            _, _, rest = name.partition("_")
            assert {f"{subset}_{rest}" for subset in ("forget", "retain", "holdout")} <= changed
        assert "forget_qa_generated" in changed


@pytest.mark.parametrize(
    "settings_",
    [
        {"name": "prefill", "words": 0},
        {"name": "few_shot", "shots": 0},
        {"name": "multi_turn", "after": "self", "rounds": 0},
        {"name": "multi_turn", "after": "related", "turns": 0},
    ],
)
def test_without_strength_it_is_the_subject_itself(scene, settings_):
    subject, context = scene
    one = attack(settings_)
    ((point, found),) = one.apply(subject, context)
    assert (point,) == one.points == (0,)
    assert found == subject


@pytest.mark.parametrize("kind", [ProbeKind.LOGPROB, ProbeKind.GENERATE, ProbeKind.CHOICE])
@pytest.mark.parametrize("fits", range(4))
@pytest.mark.parametrize("spare", [0, 1])
def test_what_does_not_fit_the_model_is_left_out_from_the_front(scene, monkeypatch, kind, fits, spare):
    from suite.attacks.prompts import base as prompts_base

    encoder = scene[1].encoder
    item = replace(QUESTION, answers=(*QUESTION.answers, "Ada was born in Rill, or somewhere else, I believe."))
    probe = probe_of(kind, item, max_new_tokens=10)
    scored = item.answers if kind is ProbeKind.CHOICE else item.answers[:1]
    answer = 10 if kind is ProbeKind.GENERATE else max(len(encoder.answer(item, a).answer) for a in scored)
    likest_last = tuple(Turn(RETAIN[i].prompt, RETAIN[i].answer) for i in (1, 2, 0))
    kept = likest_last[3 - fits :]
    room = len(encoder.prompt(replace(item, turns=kept))) + answer + spare
    monkeypatch.setattr(prompts_base, "context_of", lambda folder: room)
    (found,) = attacked_probes(scene, {"name": "few_shot", "shots": 3}, probe)
    assert found.items == (replace(item, turns=kept),)
    (framed,) = attacked_probes(scene, {"name": "frame", "kind": "role_play"}, probe)
    full = len(encoder.tokenizer(TEMPLATES[Kind.ROLE_PLAY].format(item.prompt))["input_ids"]) + answer
    assert (framed == probe) is (full > room)


def test_what_cannot_work_is_refused_before_anything_runs(scene):
    _, context = scene
    task = context.task
    texts = replace(task, probes=tuple(replace(p, items=(TEXT,)) for p in task.probes))
    refused = [
        (
            {"name": "paraphrase"},
            texts,
            r"no forget headline of pocket on dev has 1 other wordings\. Leave",
        ),
        ({"name": "paraphrase", "which": 1}, task, r"has 2 other wordings\. Use a smaller which"),
        ({"name": "frame", "kind": "injection"}, texts, "is put as a question: they are running text"),
        ({"name": "prefill", "text": "Sure"}, texts, "is put as a question"),
        ({"name": "prefill", "words": 40}, task, "asks for an answer of more than 40 words"),
        ({"name": "multiple_choice"}, texts, "is put as a question"),
        ({"name": "few_shot", "shots": 400}, task, "has [0-9]+ retain texts in the style .* Use so many shots at most"),
        ({"name": "multi_turn", "after": "self", "rounds": 1}, texts, "is put as a question"),
        ({"name": "multi_turn", "after": "related", "turns": 200}, task, "has 156 retain questions"),
    ]
    for settings_, of, message in refused:
        with pytest.raises(SpecError, match=rf"^attacks: .*{message}"):
            attack(settings_).check(of, Split.DEV)
    for settings_ in EVERY:
        for split in Split:
            attack(settings_).check(task, split)


def test_keys_follow_what_is_said_besides_what_probes_have(scene):
    subject, context = scene
    one = attack({"name": "paraphrase"})
    item = subject.probes[0].items[0]
    other = replace(subject.probes[0], items=(replace(item, rewordings=("Else?",)), *subject.probes[0].items[1:]))
    assert other.digest == subject.probes[0].digest
    assert one.reads(subject.probes, context) != one.reads((other, *subject.probes[1:]), context)
    assert one.reads(subject.probes, context) == one.reads(subject.probes, context)
    choice = attack({"name": "multiple_choice"})
    fewer = replace(context, task=replace(context.task, probes=context.task.probes[:-1]))
    assert choice.reads(subject.probes, context) != choice.reads(subject.probes, fewer)
