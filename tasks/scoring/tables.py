"""Helpers for metrics: numbers of a probe's samples, and the samples of a model paired with an anchor's.

Samples are joined by item id, never by position: a row that is missing on one side shifts none of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tasks.scoring.rouge import READS
from tasks.task import Sample

Table = Sequence[Sample]
"""The samples of one probe."""

PerSample = Callable[[Sample], float | None]
"""A metric's function: the number of one sample, or None where the sample lacks what it reads."""


def most_telling(compute: PerSample, up: bool) -> PerSample:
    """The metric of the answer that shows the most knowledge where a sample has several, else of its only answer.

    Args:
        up: whether a higher number means that the model knows more.
    """
    most = max if up else min

    def number(sample: Sample) -> float | None:
        if not sample.sampled:
            return compute(sample)
        numbers: list[float] = []
        for text in sample.sampled:
            one = compute(replace(sample, generated=text, sampled=None))
            if one is None:
                return None
            numbers.append(one)
        return most(numbers)

    return number


def or_none(compute: PerSample) -> PerSample:
    """The metric with None instead of NaN: the sample has no number of this metric, and the mean a reason."""

    def number(sample: Sample) -> float | None:
        value = compute(sample)
        return None if value is None or math.isnan(value) else value

    return number


class Missing(Exception):
    """An input of a metric is missing; the message is the reason of the null estimate. Internal: it never leaves
    `tasks.scoring`."""


def values(name: str, compute: PerSample, samples: Iterable[Sample]) -> list[float]:
    """The metric's number for every sample.

    Raises:
        Missing: a sample lacks what the metric reads.
    """
    numbers: list[float] = []
    for sample in samples:
        value = compute(sample)
        if value is None:
            raise lacking(sample, name)
        numbers.append(value)
    return numbers


def lacking(sample: Sample, name: str) -> Missing:
    what = f": {READS[name]}" if name in READS else ""
    return Missing(f"sample {sample.item} lacks what {name} reads{what}")


def paired(table: Table, anchor: Table, whose: str) -> list[tuple[Sample, Sample]]:
    """Pairs each of the model's samples with the anchor's sample of the same item.

    Raises:
        Missing: one of the two lacks an item that the other has.
    """
    theirs = {sample.item: sample for sample in anchor}
    for sample in table:
        if sample.item not in theirs:
            raise Missing(f"the {whose} model was not asked item {sample.item}")
    if len(theirs) > len(table):
        ours = {sample.item for sample in table}
        raise Missing(f"only the {whose} model was asked item {next(item for item in theirs if item not in ours)}")
    return [(sample, theirs[sample.item]) for sample in table]
