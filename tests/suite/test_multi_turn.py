"""Several turns: the earlier answers are the model's own, by plain transformers, and are generated once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch

from suite.attacks import Subject, attack
from suite.config.errors import SpecError
from suite.engines import Engine, Job
from suite.models.checkpoints import EditedCheckpoint
from tasks.scoring import summarise
from tasks.task import Example, Item, Probe, ProbeKind, Split, Style, Subset, Turn

NEW = 4
"""Tokens per generated answer."""
SELF = {"name": "multi_turn", "after": "self", "rounds": 2, "max_new_tokens": NEW}
RELATED = {"name": "multi_turn", "after": "related", "turns": 2, "max_new_tokens": NEW}


@dataclass
class Watched:
    """An engine that records its jobs."""

    engine: Engine
    jobs: list[Job] = field(default_factory=list)

    def submit(self, jobs):
        jobs = list(jobs)
        self.jobs += jobs
        return self.engine.submit(jobs)


@pytest.fixture(scope="module")
def scene(scene):
    """Three questions asked in three ways, and a running text."""
    subject, context = scene
    kept = [p for p in subject.probes if p.name in ("forget_qa", "forget_qa_generated", "forget_text")]
    probes = tuple(replace(probe, items=probe.items[:3], max_new_tokens=NEW) for probe in kept)
    return replace(subject, probes=probes), context


@pytest.fixture(scope="module")
def greedy_answer(scene):
    """The model's greedy continuation of a text, one token at a time, without a cache."""
    subject, context = scene
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(subject.checkpoint.path).eval()
    tokenizer = context.encoder.tokenizer

    @torch.no_grad()
    def after(text: str) -> str:
        ids = tokenizer(text)["input_ids"]
        start = len(ids)
        for _ in range(NEW):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()

    return after


def again(question: str) -> str:
    return f"Are you sure about that? Think it over and answer once more. {question}"


def test_the_model_reconsiders_what_it_said_itself(scene, greedy_answer):
    subject, context = scene
    rounds = dict(attack(SELF).apply(subject, context))
    assert list(rounds) == [1, 2] == list(attack(SELF).points)
    first, second = (rounds[point].probes for point in (1, 2))
    for probe, once, twice in zip(subject.probes, first, second, strict=True):
        if probe.name == "forget_text":
            assert probe == once == twice
            continue
        for item, one, two in zip(probe.items, once.items, twice.items, strict=True):
            answer = greedy_answer(item.prompt)
            assert one == replace(item, prompt=again(item.prompt), turns=(Turn(item.prompt, answer),))
            second_answer = greedy_answer(f"{item.prompt} {answer}\n{again(item.prompt)}")
            assert two.prompt == again(item.prompt)
            assert two.turns == (Turn(item.prompt, answer), Turn(again(item.prompt), second_answer))


def test_the_talk_before_is_of_retained_facts_and_the_answers_are_the_model_s(scene, greedy_answer):
    subject, context = scene
    ((point, found),) = attack(RELATED).apply(subject, context)
    assert point == 0
    retained = [text.prompt for text in context.retain if text.style is Style.QUESTION]
    words = {text: set(text.lower().replace("?", "").split()) for text in retained}
    for probe, after in zip(subject.probes, found.probes, strict=True):
        for item, new in zip(probe.items, after.items, strict=True):
            if item.style is Style.TEXT:
                assert new == item
                continue
            mine = set(item.prompt.lower().replace("?", "").split())
            nearest = sorted(retained, key=lambda q: -len(words[q] & mine) / len(words[q] | mine))[:2]
            assert [turn.question for turn in new.turns] == nearest[::-1]
            assert [turn.answer for turn in new.turns] == [greedy_answer(question) for question in nearest[::-1]]
            assert replace(new, turns=()) == item


def test_every_question_is_asked_once_a_round_and_by_the_engine_alone(scene):
    subject, context = scene
    watched = Watched(context.engine)
    dict(attack(SELF).apply(subject, replace(context, engine=watched)))
    assert len(watched.jobs) == 2
    for job in watched.jobs:
        (probe,) = job.probes
        assert probe.kind is ProbeKind.GENERATE and probe.max_new_tokens == NEW and not probe.sampling
        assert len(probe.items) == 3, "two probes ask the same three questions"
        assert job.checkpoint is subject.checkpoint


def test_it_can_be_carried_out_while_the_engine_waits_for_the_next_job(scene):
    """As in evaluations: the attack uses the engine that is drawing jobs from it."""
    subject, context = scene

    def jobs() -> Iterator[Job]:
        for point, found in attack(SELF).apply(subject, context):
            yield Job(str(point), found.checkpoint, found.probes)

    inside = {answer.key: answer.samples for answer in context.engine.submit(jobs())}
    for point, found in attack(SELF).apply(subject, context):
        (alone,) = context.engine.submit([Job("", found.checkpoint, found.probes)])
        assert inside[str(point)] == alone.samples


def test_rigidity_is_the_share_of_answers_that_stay(scene):
    subject, context = scene
    name = "forget_qa_generated"
    (before,) = context.engine.submit([Job("", subject.checkpoint, subject.probes)])
    for found in dict(attack(SELF).apply(subject, context)).values():
        (after,) = context.engine.submit([Job("", found.checkpoint, found.probes)])
        pairs = zip(before.samples[name], after.samples[name], strict=True)
        stays = [one.generated == other.generated for one, other in pairs]
        share = summarise("unchanged_answers", [after.samples[name]], [before.samples[name]])
        assert share.value == pytest.approx(sum(stays) / 3)


def test_turns_that_do_not_fit_are_left_out_the_oldest_first(scene, monkeypatch):
    from suite.attacks.prompts import base as prompts_base
    from suite.attacks.prompts import multi_turn

    subject, context = scene
    (probe,) = (probe for probe in subject.probes if probe.name == "forget_qa_generated")
    subject = replace(subject, probes=(probe,))
    unlimited = dict(attack(SELF).apply(subject, context))[2].probes[0]
    encoder = context.encoder
    seen: set[int] = set()
    for limit in range(20, 200, 5):
        for module in (prompts_base, multi_turn):
            monkeypatch.setattr(module, "context_of", lambda folder, limit=limit: limit)
        (_, (_, twice)) = attack(SELF).apply(subject, context)
        for item, new in zip(probe.items, twice.probes[0].items, strict=True):
            if len(encoder.prompt(item)) + NEW <= limit:
                assert len(encoder.prompt(new)) + NEW <= limit
            assert new.prompt in (item.prompt, again(item.prompt))
            seen.add(len(new.turns))
        if limit > max(len(encoder.prompt(item)) + NEW for item in unlimited.items):
            assert twice.probes[0] == unlimited
    assert {0, 1, 2} <= seen


def test_what_goes_wrong_with_the_engine_is_said(scene):
    subject, context = scene

    def broken(state):
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(attack(SELF).apply(replace(subject, checkpoint=EditedCheckpoint(subject.checkpoint, broken, "")), context))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"after": "self"}, "after=self takes rounds, which has no default, and no turns"),
        ({"after": "self", "rounds": 1, "turns": 1}, "after=self takes rounds"),
        ({"after": "related", "rounds": 1}, "after=related takes turns, which has no default, and no rounds"),
    ],
)
def test_each_kind_has_its_own_number(settings_, message):
    with pytest.raises(SpecError, match=message):
        attack({"name": "multi_turn", **settings_})


def test_related_questions_that_cannot_be_answered_here_are_not_spoken_of(scene, monkeypatch):
    """A question so long that its answer would not fit the model is left out; the other turns are kept."""
    from suite.attacks.prompts import base as prompts_base
    from suite.attacks.prompts import multi_turn

    subject, context = scene
    item = Item("q", "Where was Ada born?", ("In Quill.",))
    long = Example("long", "Where was Ada born? " + "so long ago " * 60, "In Rill.")
    short = Example("short", "Where was Bo born?", "In Sill.")
    context = replace(context, task=replace(context.task, retain=(long, short)))
    probe = Probe("forget_qa", Subset.FORGET, Split.TEST, ProbeKind.LOGPROB, (item,), ())
    for module in (prompts_base, multi_turn):
        monkeypatch.setattr(module, "context_of", lambda folder: 120)
    ((_, found),) = attack(RELATED).apply(Subject(subject.checkpoint, (probe,)), context)
    assert [turn.question for turn in found.probes[0].items[0].turns] == ["Where was Bo born?"]
