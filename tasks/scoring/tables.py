"""What summaries read: numbers of a probe's samples, and the samples of a model beside an anchor's, item by item.

Items are joined by their ids, never by their place: a row that is missing on one side shifts none of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tasks.task import Sample

Table = Sequence[Sample]
"""The samples of one probe."""

Of = Callable[[Sample], float | None]
"""A metric's function: the number of one sample, None where the sample lacks what it reads."""


def most_telling(of: Of, up: bool) -> Of:
    """The metric of the answer that shows the most knowledge, where a sample holds several; else of its only one.

    Args:
        up: whether a higher number means that the model knows more.
    """
    most = max if up else min

    def number(sample: Sample) -> float | None:
        if not sample.sampled:
            return of(sample)
        found = [of(replace(sample, generated=text, sampled=None)) for text in sample.sampled]
        return None if None in found else most(found)

    return number


class Missing(Exception):
    """Something that a number is made of is not there; the message is the reason of the null estimate."""


def values(name: str, of: Of, samples: Iterable[Sample]) -> list[float]:
    """The metric's number of every sample.

    Raises:
        Missing: a sample lacks what the metric reads.
    """
    found: list[float] = []
    for sample in samples:
        value = of(sample)
        if value is None:
            raise lacking(sample, name)
        found.append(value)
    return found


def lacking(sample: Sample, name: str) -> Missing:
    return Missing(f"sample {sample.item} lacks what {name} reads")


def beside(table: Table, anchor: Table, whose: str) -> list[tuple[Sample, Sample]]:
    """Each of the model's samples with the anchor's of the same item.

    Raises:
        Missing: one of the two was not asked an item that the other was asked.
    """
    theirs = {sample.item: sample for sample in anchor}
    for sample in table:
        if sample.item not in theirs:
            raise Missing(f"the {whose} model was not asked item {sample.item}")
    if len(theirs) > len(table):
        asked = {sample.item for sample in table}
        raise Missing(f"only the {whose} model was asked item {next(item for item in theirs if item not in asked)}")
    return [(sample, theirs[sample.item]) for sample in table]
