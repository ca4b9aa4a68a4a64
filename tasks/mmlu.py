"""MMLU: general knowledge, 57 subjects, four choices (Hendrycks et al. 2020, arXiv 2009.03300)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tasks import choices
from tasks.files import Row, Source
from tasks.task import Headline, Probe, Subset, TaskError

HUB = "cais/mmlu"
REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
ROWS = {"test": 14_042, "dev": 285}
SHOTS = 5

HEADLINE = Headline("mmlu_0shot_spaced", "accuracy", choices.CHANCE)


def source() -> Source:
    return Source.find("mmlu", HUB, REVISION)


def table(split: str) -> list[Row]:
    """The rows of all subjects, in order.

    Raises:
        TaskError: the data is not available, or not as published.
    """
    return source().table("all", split, rows=ROWS[split], text=("question", "subject"), choices=choices.CHOICES)


def probes(
    rows: Sequence[Row], letters: choices.Letters = "spaced", few: bool = False, begin: bool = False
) -> tuple[Probe, ...]:
    """The questions, zero-shot or after the five `dev` questions of their subject.

    Args:
        begin: whether a prompt begins with the tokenizer's beginning-of-text token.

    Raises:
        TaskError: a subject does not have five rows in `dev`.
    """
    shots = _shots() if few else None
    return choices.probes("mmlu", Subset.RETAIN, rows, lambda row: row["subject"], shots, letters, begin)


def _shots() -> dict[str, list[Row]]:
    rows = sorted(table("dev"), key=lambda row: row["subject"])  # stable: keeps the order within a subject
    shots = {subject: list(some) for subject, some in groupby(rows, lambda row: row["subject"])}
    for subject, some in shots.items():
        if len(some) != SHOTS:
            raise TaskError(f"{some[0].where}: subject: {subject} has {len(some)} rows, not {SHOTS}")
    return shots
