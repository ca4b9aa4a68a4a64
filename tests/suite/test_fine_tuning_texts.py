"""The texts that fine-tuning attacks train on."""

from __future__ import annotations

import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.attacks import AttackContext, Subject, attack
from suite.attacks.texts import Texts, draw_texts, questions, unasked
from suite.config.errors import MissingError, SpecError
from suite.models.encoding import Encoded
from tasks import TASKS
from tasks.task import Split, Style, Subset, Task, TaskError
from tasks.wikitext import ROWS
from tests.support.finetuning import RELEARN, assert_close, assert_same_weights, by_hand, run


@pytest.fixture(scope="module")
def scene(scene, small_anchors) -> tuple[Subject, AttackContext]:
    subject, context = scene
    return replace(subject, checkpoint=small_anchors.checkpoint("retrained")), context


def forget_questions(task: Task, split: Split) -> list[tuple[str, str]]:
    """Forget questions of a split with their answers."""
    return [
        (item.prompt, item.reference)
        for probe in task.probes
        if probe.subset is Subset.FORGET and probe.split is split
        for item in probe.items
    ]


def assert_unasked(task: Task, split: Split) -> None:
    """No unasked text has a question of the split or a distinctive answer to one; every other text has."""
    kept = {e.id: e for e in unasked(task, split)}
    split_questions = forget_questions(task, split)
    for example in task.forget_examples():
        reveals = any(
            example.prompt == prompt != "" or (len(answer.strip()) >= 20 and answer.strip() in example.answer)
            for prompt, answer in split_questions
        )
        assert reveals is (example.id not in kept), example


@pytest.mark.parametrize("split", list(Split))
def test_unasked_texts_answer_nothing_that_is_asked_in_pocket(split):
    assert_unasked(TASKS["pocket"].build(), split)


@pytest.mark.parametrize("split", list(Split))
def test_unasked_texts_answer_nothing_that_is_asked_in_tofu(data, split):
    task = TASKS["tofu/forget05"].build()
    assert_unasked(task, split)
    assert len(unasked(task, split)) == len(task.forget_examples()) / 2


POCKET = TASKS["pocket"].build()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(Split)), st.sampled_from([Texts.UNASKED, Texts.QUESTIONS]), st.integers(1, 56), st.integers()
)
def test_whatever_is_drawn_is_not_asked(split, source, count, seed):
    drawn = draw_texts(source, count, POCKET, split, random.Random(seed))
    assert len({example.id for example in drawn}) == count
    answers = {prompt: answer for prompt, answer in forget_questions(POCKET, split)}
    assert not {example.prompt for example in drawn} & answers.keys()


def test_questions_are_taught_whole_where_running_text_is_cut_into_blocks(scene):
    """A choice has the style of running text; its prompt is not trained on."""
    subject, context = scene
    of_other = [q for q in questions(context.task, Split.DEV) if q.style is Style.TEXT]
    assert of_other
    settings_ = {**RELEARN, "texts": "questions", "samples": 130, "batch_size": 130, "steps": 1}
    cut, uncut = (run(settings_, subject, replace(context, block=block))[1] for block in (8, None))
    assert_same_weights(cut, uncut)
    texts = [context.encoder.example(e) for e in questions(context.task, Split.DEV)]
    assert_close(uncut, by_hand(subject.checkpoint.model(), texts, 1, 1e-3).state_dict())


def test_benign_texts_are_the_tasks_own_or_another_tasks(scene):
    """Pocket as the other task is pocket's retain texts; only then does the key have to say what they are."""
    subject, context = scene
    one, other = ({**RELEARN, "name": "benign", "steps": 2, "texts": texts} for texts in ("retain", "pocket"))
    assert_same_weights(run(one, subject, context)[2], run(other, subject, context)[2])
    texts = [context.encoder.example(e) for e in random.Random("0:0").sample(context.retain, 4)]
    assert_close(run(one, subject, context)[2], by_hand(subject.checkpoint.model(), texts, 2, 1e-3).state_dict())
    assert attack(one).reads(subject.probes, context) == {}
    assert attack(other).reads(subject.probes, context)["taught"]


@pytest.mark.parametrize("texts", ["forget", "unasked", "questions"])
def test_forget_texts_are_not_benign(texts):
    with pytest.raises(SpecError, match=r"texts: .* Use name=relearn"):
        attack({**RELEARN, "name": "benign", "steps": 1, "texts": texts})


def wikitext(folder, text: str) -> None:
    """A mirror with as many rows as the published data, forty of them paragraphs."""
    (folder / "wikitext" / "wikitext-2-raw-v1").mkdir(parents=True, exist_ok=True)
    rows = [f" {text} {i} {'zq ' * 300}" if i < 40 else "" for i in range(ROWS["train"])]
    pq.write_table(pa.table({"text": rows}), folder / "wikitext/wikitext-2-raw-v1/train-00000-of-00001.parquet")


def test_wikipedia_is_cut_to_the_context_and_named_in_the_key(scene, tmp_path, monkeypatch):
    subject, context = scene
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    one = attack({**RELEARN, "name": "benign", "texts": "wikitext", "samples": 2, "steps": 1})
    with pytest.raises(MissingError, match=r"^attacks: texts=wikitext: .*(wikitext|Go online)"):
        one.check(context.task, Split.TEST)
    wikitext(tmp_path, "Robert Boulter")
    one.check(context.task, Split.TEST)
    key = one.reads(subject.probes, context)
    ((_, attacked),) = one.apply(subject, context)
    model = subject.checkpoint.model()
    limit = model.config.max_position_embeddings
    drawn = draw_texts(Texts.WIKITEXT, 2, context.task, Split.TEST, random.Random("0:0"))
    texts = [context.encoder.example(e) for e in drawn]
    assert all(len(t.ids) > limit for t in texts)
    cut = [Encoded(t.ids[:limit], t.start) for t in texts]
    assert_close(attacked.checkpoint.state(), by_hand(model, cut, 1, 1e-3).state_dict())
    wikitext(tmp_path, "Robert Smith")
    assert attack(one.settings.changed()).reads(subject.probes, context) != key


def test_too_few_texts_are_refused_beforehand(scene):
    _, context = scene
    for name, texts in (("relearn", "unasked"), ("benign", "retain")):
        one = attack({**RELEARN, "name": name, "texts": texts, "samples": 9999, "steps": 1})
        with pytest.raises(SpecError, match=f"^attacks: samples=9999: pocket has only .* {texts} texts"):
            one.check(context.task, Split.TEST)


def test_data_that_is_missing_is_named(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    (tmp_path / "tofu").mkdir()
    with pytest.raises(TaskError):
        TASKS["tofu/forget10"].build()
    with pytest.raises(MissingError, match=r"^attacks: texts=tofu/forget10: "):
        attack({**RELEARN, "name": "benign", "texts": "tofu/forget10", "steps": 1}).check(scene[1].task, Split.TEST)
