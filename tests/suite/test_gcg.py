"""Greedy coordinate gradient against autograd, plain forward passes, brute force and, where installed, nanogcg."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.attacks import Subject, attack
from suite.attacks.prompts.gcg_places import Question, SplitPrompt, placed, printable, start, target
from suite.attacks.prompts.gcg_search import search, swaps, text_losses, token_gradient
from suite.config.errors import SpecError
from suite.engines import Job
from suite.models.encoding import Encoder, Template
from tasks.scoring import score
from tasks.task import Item, ProbeKind, Split, Style, Subset
from tests.support.language_model import llama
from tests.support.tokenizer_families import CHATML, FAMILIES

VOCABULARY = 23
PROMPTS = (SplitPrompt((1, 2), (3,), (4, 5, 6)), SplitPrompt((), (7, 8, 9), (10, 11)))
SMALL_BUDGET = {"name": "gcg", "steps": 2, "tokens": 4, "candidates": 8, "top_k": 8}


@pytest.fixture(scope="module")
def scene(scene):
    """A subject and its context, with few questions."""
    subject, context = scene
    task = replace(context.task, probes=tuple(replace(p, items=p.items[:3]) for p in context.task.probes))
    return replace(subject, probes=task.probes_of(Split.TEST)), replace(context, task=task)


def by_hand(model: torch.nn.Module, prompts: tuple[SplitPrompt, ...], ids: tuple[int, ...]) -> float:
    """The loss by one plain forward pass per prompt."""
    total = 0.0
    for prompt in prompts:
        head = [*prompt.before, *ids, *prompt.after]
        with torch.no_grad():
            logp = model(torch.tensor([[*head, *prompt.target]])).logits[0].double().log_softmax(-1)
        logprobs = [float(logp[len(head) - 1 + i, token]) for i, token in enumerate(prompt.target)]
        total -= sum(logprobs) / len(logprobs)
    return total / len(prompts)


def all_swaps(ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [
        (*ids[:place], token, *ids[place + 1 :])
        for place in range(len(ids))
        for token in range(VOCABULARY)
        if token != ids[place]
    ]


def searched(model: torch.nn.Module, first: tuple[int, ...], **changes: object):
    budget = {"steps": 1, "candidates": 10**6, "top_k": VOCABULARY, "survives": lambda ids: True}
    budget |= {"allowed": torch.ones(VOCABULARY, dtype=torch.bool), "generator": torch.Generator().manual_seed(0)}
    return search(model, PROMPTS, first, **(budget | changes))


def test_the_token_gradient_is_the_one_of_the_one_hot_vectors():
    model, ids = llama(), (12, 0, 19)
    one_hot = torch.nn.functional.one_hot(torch.tensor(ids), VOCABULARY).float().requires_grad_()
    table = model.get_input_embeddings().weight.detach()
    loss = torch.zeros(())
    for prompt in PROMPTS:
        rows = torch.cat([table[list(prompt.before)], one_hot @ table, table[[*prompt.after, *prompt.target]]])
        logp = model(inputs_embeds=rows[None]).logits[0].log_softmax(-1)
        logprobs = [logp[len(rows) - len(prompt.target) - 1 + i, token] for i, token in enumerate(prompt.target)]
        loss = loss - sum(logprobs) / len(logprobs) / len(PROMPTS)
    (expected,) = torch.autograd.grad(loss, one_hot)
    torch.testing.assert_close(token_gradient(model, PROMPTS, ids), expected, rtol=1e-4, atol=1e-6)


def test_losses_are_those_of_plain_forward_passes():
    model = llama()
    texts = all_swaps((12, 0, 19))
    expected = [by_hand(model, PROMPTS, ids) for ids in texts]
    assert text_losses(model, PROMPTS, texts) == pytest.approx(expected, abs=1e-4)


def test_a_step_over_all_swaps_is_brute_force():
    model, first = llama(), (12, 0, 19)
    expected = {ids: by_hand(model, PROMPTS, ids) for ids in all_swaps(first)}
    best = min(expected, key=expected.get)
    assert expected[best] < by_hand(model, PROMPTS, first)  # or the start itself would be the best
    found = searched(model, first)
    assert found.ids == best
    assert found.losses == pytest.approx((by_hand(model, PROMPTS, first), expected[best]), abs=1e-4)


def test_steps_over_all_swaps_are_greedy_descent():
    """Three steps by hand, each to the best neighbour, even if it is worse than the current text."""
    model, here = llama(), (12, 0)
    path = [here]
    for _ in range(3):
        path.append(min(all_swaps(path[-1]), key=lambda ids: by_hand(model, PROMPTS, ids)))
    losses = [by_hand(model, PROMPTS, ids) for ids in path]
    found = searched(model, here, steps=3)
    assert found.losses == pytest.approx(losses, abs=1e-4)
    assert found.ids == path[losses.index(min(losses))]
    assert found.loss == min(found.losses)


def test_what_does_not_survive_or_is_not_allowed_is_never_put_in():
    model, first = llama(), (12, 0, 19)
    allowed = torch.arange(VOCABULARY) < 15
    odd = {
        ids: by_hand(model, PROMPTS, ids)
        for ids in all_swaps(first)
        if sum(ids) % 2 and all(a == b or a < 15 for a, b in zip(ids, first, strict=True))
    }
    found = searched(model, first, allowed=allowed, survives=lambda ids: sum(ids) % 2 == 1)
    assert found.losses[1] == pytest.approx(min(odd.values()), abs=1e-4)


def test_where_nothing_survives_the_start_is_kept():
    found = searched(llama(), (12, 0), survives=lambda ids: False, steps=5)
    assert found.ids == (12, 0) and len(found.losses) == 1


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_swaps_are_the_steepest_of_each_place_each_once(data):
    vocabulary = data.draw(st.integers(2, 12))
    ids = tuple(data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=4)))
    top_k, seed = data.draw(st.integers(1, 14)), data.draw(st.integers(0, 10**6))
    allowed = torch.tensor(data.draw(st.lists(st.booleans(), min_size=vocabulary, max_size=vocabulary)))
    gradient = torch.randn(len(ids), vocabulary, generator=torch.Generator().manual_seed(seed))
    expected = set()
    for place, row in enumerate(gradient.tolist()):
        others = [token for token in range(vocabulary) if allowed[token] and token != ids[place]]
        best = sorted(others, key=row.__getitem__)[:top_k]
        expected |= {(*ids[:place], token, *ids[place + 1 :]) for token in best}
    found = list(swaps(ids, gradient, top_k, allowed, torch.Generator().manual_seed(seed)))
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert found == list(swaps(ids, gradient, top_k, allowed, torch.Generator().manual_seed(seed)))


def test_a_search_leaves_the_model_and_the_global_random_numbers_alone():
    model = llama().requires_grad_(True)
    model.model.norm.weight.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    searched(model, (12, 0, 19), steps=2, candidates=4)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, parameter in model.named_parameters():
        weight, trained = before[name]
        assert torch.equal(parameter, weight) and parameter.requires_grad is trained and parameter.grad is None


def test_it_agrees_with_nanogcg(scene):
    """Its token gradient, its losses and its choice of tokens, for one question (pip install --no-deps nanogcg)."""
    nanogcg = pytest.importorskip("nanogcg.gcg")
    subject, context = scene
    model = subject.checkpoint.model().requires_grad_(False)
    item = subject.probes[0].items[0]
    question = Question.of(item, context.encoder)
    prompt, ids = question.prompt, start(5, [question])
    tokenizer = copy.deepcopy(context.encoder.tokenizer)  # a chat template is put into it
    theirs = nanogcg.GCG(model, tokenizer, nanogcg.GCGConfig(use_prefix_cache=False))
    table = model.get_input_embeddings().weight.detach()
    theirs.target_ids = torch.tensor([prompt.target])
    for name in ("before", "after", "target"):
        setattr(theirs, f"{name}_embeds", table[list(getattr(prompt, name))][None])
    expected = theirs.compute_token_gradient(torch.tensor([ids]))[0]
    torch.testing.assert_close(token_gradient(model, [prompt], ids), expected, rtol=1e-4, atol=1e-6)
    texts = [ids, *((token, *ids[1:]) for token in range(2, 20))]
    rows = [table[list(prompt.around(text).ids)] for text in texts]
    losses = theirs._compute_candidates_loss_original(7, torch.stack(rows))
    assert text_losses(model, [prompt], texts) == pytest.approx(losses.tolist(), abs=1e-4)
    barred = set(theirs.not_allowed_ids.tolist())
    allowed = printable(context.encoder, len(table))
    assert {token for token in range(len(tokenizer)) if not allowed[token]} == barred


@pytest.mark.parametrize("template", list(Template))
@pytest.mark.parametrize("before", [True, False])
def test_what_stands_around_a_text_is_the_rest_of_the_prompt(scene, template, before):
    """The template's own words, tokenized by themselves: a byte-level tokenizer cuts at a new line."""
    tokenizer = copy.deepcopy(scene[1].encoder.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]: {{ m['content'] }}\n{% endfor %}[bot]:"
    encoder = Encoder(tokenizer, template)
    item = Item("i", "Who was born in Quorn?", (" A potter.",), prefill="Well,")
    opening, closing = {
        Template.BARE: ("", ""),
        Template.PLAIN: ("Question: ", "\nAnswer:"),
        Template.CHAT: ("[user]: ", "\n[bot]:"),
    }[template]
    begun = "Well," if template is Template.CHAT else " Well,"
    question = Question.of(item, encoder, before=before)
    left, right = (opening, f"\n{item.prompt}{closing}") if before else (f"{opening}{item.prompt}\n", closing)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert (question.prompt.before, question.prompt.after) == (ids(left), ids(right) + ids(begun))
    assert question.reads_back(ids("x !a")) and not question.reads_back((*ids("a"), *ids("e")))  # ae is one token


def test_running_text_has_the_text_before_it():
    text = Item("t", "Chronicle of Quorn.", (" At dawn.",), style=Style.TEXT)
    question = Item("q", "Who?", ("I.",))
    assert placed(text, "abc").prompt == "abc\nChronicle of Quorn."
    assert placed(question, "abc").prompt == "Who?\nabc"
    assert placed(question, "abc", before=True).prompt == "abc\nWho?"


def test_the_target_is_what_the_probe_scores(scene):
    encoder = scene[1].encoder
    question = Item("q", "Who plays the viol?", ("Thaenousk of Quorn plays the viol.",))
    probe = replace(scene[0].probes[0], max_reference_tokens=3)
    assert target(question, encoder)[-1] == encoder.eos
    cut = encoder.tokenizer.decode(encoder.tokenizer(question.reference)["input_ids"][:3])
    assert target(question, encoder, probe) == encoder.answer(question, cut).answer
    text = Item("t", "Chronicle of Quorn.", (" At dawn the elder miller mended the bell.",), style=Style.TEXT)
    encoded_text = encoder.answer(text, text.reference)
    probe = replace(scene[0].probes[0], max_tokens=encoded_text.start + 4)
    assert target(text, encoder, probe) == encoded_text.answer[:4]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", [Template.BARE, Template.PLAIN, Template.CHAT])
def test_the_search_asks_the_tokens_that_are_scored_whatever_the_tokenizer(family: str, template: Template):
    tokenizer = FAMILIES[family]()
    tokenizer.chat_template = CHATML
    encoder = Encoder(tokenizer, template)
    read_back = 0
    for item in (
        Item("q", "Who built it?", ("Maren Tolve built it.",)),
        Item("text", "Skerry Vole was built ", ("by Maren.",), style=Style.TEXT),
        Item("begun", "Who built it?", ("Tolve",), prefill="It was Maren "),
    ):
        for text, before in itertools.product(("lake", "by the lake", "it was here,"), (False, True)):
            question = Question.of(item, encoder, before=before)
            rendered = question.render(text)
            ids = rendered[len(question.prompt.before) : len(rendered) - len(question.prompt.after)]
            if question.reads_back(ids):
                read_back += 1
                asked = encoder.answer(placed(item, question.text(ids), before), item.reference)
                assert question.prompt.around(ids) == asked
    assert read_back >= 6


def test_each_question_has_its_own_text_and_its_siblings_share_it(scene):
    subject, context = scene
    ((_, attacked),) = attack(SMALL_BUDGET).apply(subject, context)
    headlines = {headline.probe for headline in context.task.knowledge}
    texts: dict[str, str] = {}
    for before, after in zip(subject.probes, attacked.probes, strict=True):
        if before.subset is not Subset.FORGET:
            assert after == before
            continue
        for old, new in zip(before.items, after.items, strict=True):
            assert new.id == old.id and new.answers == old.answers
            text = new.prompt.replace(old.prompt, "").strip("\n")
            assert new == placed(old, text)
            if before.name in headlines:
                texts[old.id] = text
                more = len(context.encoder.prompt(new)) - len(context.encoder.prompt(old))
                assert more == 4 + 1  # and the new line
            else:
                assert text == texts[old.id]
    assert len(set(texts.values())) > 1
    assert attacked.checkpoint is subject.checkpoint


def test_only_forget_questions_are_changed(scene):
    """Also where another question has the same id."""
    subject, context = scene
    forget = subject.probes[0]
    items = tuple(replace(item, prompt="Who else?") for item in forget.items)
    retain = replace(forget, name="retain_too", subset=Subset.RETAIN, items=items)
    ((_, attacked),) = attack(SMALL_BUDGET).apply(replace(subject, probes=(forget, retain)), context)
    assert attacked.probes[1] == retain and attacked.probes[0] != forget


def test_tokens_that_may_be_put_in_are_plain_text(scene):
    tokenizer = scene[1].encoder.tokenizer
    allowed = printable(scene[1].encoder, len(tokenizer) + 3)
    assert len(allowed) == len(tokenizer) + 3 and not allowed[len(tokenizer) :].any()
    for text, expected in {" of": True, "!": True, "\n": False, "é": False, "<end>": False, "<pad>": False}.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert all(bool(allowed[i]) is expected for i in ids), text


def test_optimised_texts_bring_the_answers_nearer(scene):
    """The engine's samples of the probe, compared with those under a text that was not optimised."""
    subject, context = scene
    probe = next(p for p in subject.probes if p.name == "forget_qa" and p.kind is ProbeKind.LOGPROB)
    subject = replace(subject, probes=(probe,))
    ((_, attacked),) = attack({**SMALL_BUDGET, "steps": 10, "candidates": 32}).apply(subject, context)
    unoptimised = []
    for item in probe.items:
        question = Question.of(item, context.encoder)
        unoptimised.append(placed(item, question.text(start(4, [question]))))
    before = Subject(subject.checkpoint, (replace(probe, items=tuple(unoptimised)),))
    answers = [
        answer.samples["forget_qa"]
        for s in (before, attacked)
        for answer in context.engine.submit([Job("", s.checkpoint, s.probes)])
    ]
    for one, other in zip(*answers, strict=True):
        assert sum(other.token_logprobs) > sum(one.token_logprobs)
    assert score("probability", answers[1]).value > 1.2 * score("probability", answers[0]).value


def test_a_universal_text_stands_before_everything_that_is_asked(scene):
    subject, context = scene
    settings_ = {**SMALL_BUDGET, "scope": "universal", "samples": 3}
    ((_, attacked),) = attack(settings_).apply(subject, context)
    texts = set()
    for before, after in zip(subject.probes, attacked.probes, strict=True):
        for old, new in zip(before.items, after.items, strict=True):
            text, rest = new.prompt.split("\n")
            assert rest == old.prompt and new == placed(old, text, before=True)
            texts.add(text)
    assert len(texts) == 1


def test_a_universal_text_is_optimised_on_what_is_not_asked(scene):
    subject, context = scene
    asked_ids = {i.id for p in subject.probes if p.subset is Subset.FORGET for i in p.items}
    others = sum(e.id not in asked_ids for e in context.task.forget_examples())
    enough = {"name": "gcg", "steps": 1, "scope": "universal", "samples": others}
    attack(enough).check(context.task, Split.TEST)
    with pytest.raises(SpecError, match=f"only {others} unasked questions on test"):
        attack({**enough, "samples": others + 1}).check(context.task, Split.TEST)
    assert attack(enough).reads(subject.probes, context) != attack({**enough, "texts": "forget"}).reads(
        subject.probes, context
    )


@pytest.mark.parametrize("none", [{"steps": 0}, {"tokens": 0}])
def test_without_strength_it_is_the_subject_itself(scene, none):
    subject, context = scene
    for scope in ({}, {"scope": "universal", "samples": 2}):
        ((point, attacked),) = attack({**SMALL_BUDGET, **scope, **none}).apply(subject, context)
        assert point == 0 and attacked is subject


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(scene):
    subject, context = scene
    subject = replace(subject, probes=subject.probes[:1])
    random_state = torch.get_rng_state()
    one, again, other = (
        next(attack({**SMALL_BUDGET, "seed": seed}).apply(subject, context))[1].probes for seed in (0, 0, 1)
    )
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_question_has_the_same_text_whatever_else_is_asked(scene):
    subject, context = scene
    probe = subject.probes[0]
    alone = replace(subject, probes=(replace(probe, items=probe.items[1:2]),))
    ((_, all_),) = attack(SMALL_BUDGET).apply(subject, context)
    ((_, one),) = attack(SMALL_BUDGET).apply(alone, context)
    assert one.probes[0].items[0] == all_.probes[0].items[1]


def test_what_cannot_work_is_refused(scene):
    subject, context = scene
    with pytest.raises(SpecError, match="scope=universal"):
        attack({**SMALL_BUDGET, "samples": 3})
    with pytest.raises(SpecError, match="but the model reads"):
        list(attack({**SMALL_BUDGET, "tokens": 400}).apply(subject, context))
    nothing = replace(context.task, probes=tuple(p for p in context.task.probes if p.subset is Subset.RETAIN))
    with pytest.raises(SpecError, match="asks no forget question on test"):
        attack(SMALL_BUDGET).check(nothing, Split.TEST)
