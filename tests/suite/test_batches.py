"""The batches of a run: draws that never change, and refusals in the same rows as the questions they answer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.models.encoding import Tokens
from suite.models.likelihood import sequence_logprobs
from suite.objectives import OBJECTIVES, ObjectiveSettings, Reference
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training.anchors import Anchors, prepare_anchors
from suite.training.batches import Batches
from suite.training.refusals import REFUSALS, refused
from suite.training.unlearning import unlearn
from tasks import TASKS
from tasks.task import Example, Style, Task
from tests.support.small import SMALL

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task() -> Task:
    return TASKS["pocket"].build()


@pytest.fixture
def warm(warm_store, task) -> Anchors:
    return prepare_anchors(trial(SMALL), task, Store(warm_store).stages, RuntimeSpec())


def settings(name: str, **changes: object) -> ObjectiveSettings:
    return OBJECTIVES[name].Settings(**changes)


def batches(warm: Anchors, task: Task, objective: ObjectiveSettings, reference: Reference | None = None) -> Batches:
    forget = task.forget_examples()
    return Batches(forget, task.retain, warm.base.encoder, objective, task.name, CPU, reference)


def test_draws_are_epochs_without_replacement_from_one_generator(warm, task):
    """Line by line: every stored result depends on this order of draws."""
    forget, retain = task.forget_examples(), task.retain
    size, steps = 7, 2 * len(forget) // 7
    draw, pending = random.Random(5), ([], [])
    encode = warm.base.encoder.example
    for batch in batches(warm, task, settings("graddiff")).draw(size, steps, seed=5):
        rows = []
        for side, total in ((0, len(forget)), (1, len(retain))):
            while len(pending[side]) < size:
                pending[side].extend(draw.sample(range(total), total))
            rows.append(pending[side][:size])
            del pending[side][:size]
        assert torch.equal(batch.forget.ids, Tokens.collate([encode(forget[i]) for i in rows[0]]).ids)
        assert torch.equal(batch.retain.ids, Tokens.collate([encode(retain[i]) for i in rows[1]]).ids)
        assert batch.forget_reference is batch.forget_refusals is batch.retain_refusals is None


def test_refusals_follow_the_questions_that_they_refuse(warm, task):
    encoder, model = warm.base.encoder, warm.checkpoint("target").model()
    forget = task.forget_examples()
    (batch,) = batches(warm, task, settings("dpo"), Reference(model)).draw(20, 1, seed=0)
    rows = random.Random(0).sample(range(len(forget)), len(forget))[:20]
    assert {forget[row].style for row in rows} == set(Style)
    for place, row in enumerate(rows):
        answers, refusals = batch.forget, batch.forget_refusals
        prompts = [t.ids[place][: int(t.answer[place].nonzero()[0])].tolist() for t in (answers, refusals)]
        assert prompts[0] == prompts[1] == list(encoder.encode(forget[row].prompt, "", forget[row].style).prompt)
        text = encoder.decode(refusals.ids[place][refusals.answer[place]].tolist())
        assert text == REFUSALS[row % len(REFUSALS)]
    with torch.no_grad():
        expected = sequence_logprobs(model, batch.forget_refusals)
    assert batch.forget_refusals_reference.tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_refusals_are_made_only_for_those_who_ask(warm, task):
    def drawn(name: str, **changes: object) -> tuple[bool, bool]:
        (batch,) = batches(warm, task, settings(name, **changes)).draw(2, 1, seed=0)
        return batch.forget_refusals is not None, batch.retain_refusals is not None

    assert drawn("me_ap") == (False, True)
    assert drawn("me_ap", retain="nll") == (False, False)
    assert drawn("me_ap", retain_weight=0.0) == (False, False)
    assert drawn("simnpo") == (False, False)


@pytest.mark.parametrize("name", ["dpo", "me_ap"])
def test_text_without_a_prompt_cannot_be_refused(warm, task, name):
    bare = Example("bare-7", "", "It rained.", Style.TEXT)
    bad = replace(task, forget={"all": (bare,)}, retain=(*task.retain, bare))
    with pytest.raises(SpecError, match=rf"objective\.name: {name} .* pocket .*bare-7"):
        batches(warm, bad, settings(name), Reference(warm.checkpoint("target").model()))


def test_a_refusal_continues_running_text_after_a_space():
    for style, space in ((Style.TEXT, " "), (Style.QUESTION, "")):
        (text,) = refused([Example("a", "Chronicle of Aram.", " It rained.", style)], "dpo", "some task")
        assert text.answer == space + REFUSALS[0]


def test_a_refusal_depends_on_the_index_alone():
    texts = [Example(str(i), "Who?", "She.") for i in range(45)]
    answers = [text.answer for text in refused(texts, "dpo", "some task")]
    assert answers[:20] == answers[20:40] == list(REFUSALS)
    assert len(set(REFUSALS)) == 20
    assert [text.prompt for text in texts] == ["Who?"] * 45


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_unlearns(warm_store, warm, task, name, tmp_path):
    """The real path: after two steps the weights are finite and differ from the target's."""
    objective = {"name": name, **OBJECTIVES[name].example}
    spec = trial(merged(SMALL, {"objective": objective, "steps": 2}))
    (stage,) = unlearn(spec, task, warm, Store(tmp_path).stages, RuntimeSpec())
    assert stage.meta["status"] == "ok"
    assert stage.meta["change_norm"] > 0
    assert stage.meta["cost"]["gradient"] == 2
