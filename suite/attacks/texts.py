"""The texts that attacks train on, calibrate with or show: their sources, and random draws from them.

A model that relearns the facts that the questions are about is taught the answers; a model that relearns other facts
has to recall them. `unasked` separates the two: texts that answer no question of the split that is measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator

from suite.config.errors import UnsuitableError
from suite.config.settings import nearest
from tasks import TASKS, wikitext
from tasks.task import Example, Split, Style, Subset, Task, TaskError

MIN_DISTINCTIVE = 20
"""Shortest answer, in characters, that identifies the text it is from; a shorter one may occur anywhere."""


class Texts(StrEnum):
    """Sources of texts: the task itself and Wikipedia. Besides these, a task's name stands for its retain texts."""

    FORGET = "forget"
    """Any of the forget texts, including those that the questions are about: the published practice."""
    UNASKED = "unasked"
    """Forget texts that answer no forget question of the split that is measured (T and V of arXiv 2410.08827)."""
    QUESTIONS = "questions"
    """Forget questions of the other split with their correct answers (arXiv 2410.08827 on multiple choice)."""
    RETAIN = "retain"
    """The retain texts."""
    WIKITEXT = "wikitext"
    """Paragraphs of WikiText-2's `train` split."""


def _known(name: str) -> str:
    if name not in list(Texts) and name not in TASKS:
        known = [*Texts, *TASKS]
        raise ValueError(f"{name}: no such texts.{nearest(name, known)} (allowed: {', '.join(Texts)}, or a task)")
    return name


Source = Annotated[str, AfterValidator(_known)]
"""A setting that names a source of texts: one of `Texts`, or a task."""


def texts_of(source: str, task: Task, split: Split) -> tuple[Example, ...]:
    """All texts of a source, in order.

    Raises:
        TaskError: the data is not available, or differs from the published data.
    """
    match source:
        case Texts.FORGET:
            return task.forget_examples()
        case Texts.UNASKED:
            return unasked(task, split)
        case Texts.QUESTIONS:
            return questions(task, next(other for other in Split if other is not split))
        case Texts.RETAIN:
            return task.retain
        case Texts.WIKITEXT:
            rows = wikitext.paragraphs("train")
            return tuple(Example(f"wikitext{i}", "", row["text"], Style.TEXT) for i, row in enumerate(rows))
        case _:
            return TASKS[source].build().retain


def unasked(task: Task, split: Split) -> tuple[Example, ...]:
    """Forget texts that answer no forget question of a split: no question has their id or its answer in the text."""
    items = [i for p in task.probes_of(split) if p.subset is Subset.FORGET for i in p.items]
    ids = {item.id for item in items}
    answers = {answer for item in items if len(answer := item.reference.strip()) >= MIN_DISTINCTIVE}
    return tuple(
        example
        for example in task.forget_examples()
        if example.id not in ids and not any(answer in f"{example.prompt}{example.answer}" for answer in answers)
    )


def questions(task: Task, split: Split) -> tuple[Example, ...]:
    """The forget questions of a split's knowledge headlines with their correct answers, each once."""
    examples = {
        (item.prompt, item.reference): Example(f"{probe.name}:{item.id}", item.prompt, item.reference, item.style)
        for probe in task.probes_behind(task.knowledge, split)
        for item in probe.items
    }
    return tuple(examples.values())


def draw_texts(source: str, count: int, task: Task, split: Split, rng: random.Random) -> list[Example]:
    """Draw `count` texts of a source without replacement.

    Raises:
        UnsuitableError: there are fewer texts.
        TaskError: their data is not available, or differs from the published data.
    """
    return rng.sample(at_least(count, source, task, split), count)


def at_least(count: int, source: str, task: Task, split: Split) -> Sequence[Example]:
    """All texts of a source, of which at least `count` are needed.

    Raises:
        UnsuitableError: there are fewer texts.
        TaskError: their data is not available, or differs from the published data.
    """
    try:
        texts = texts_of(source, task, split)
    except TaskError as error:
        raise type(error)(f"attacks: texts={source}: {error}") from None
    if count > len(texts):
        raise UnsuitableError(f"attacks: samples={count}: {task.name} has only {len(texts)} {source} texts on {split}")
    return texts
