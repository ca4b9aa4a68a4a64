"""Compares open-unlearning's numbers (arXiv 2506.12618) with our metrics on its logs, one line per number.

Where the published number is a variant of our metric, the variant is computed from the same samples too, and the line
names it; docs/importing.md explains the variants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leaderboard.peers import comparing, examples
from leaderboard.peers.answers import CHOICES, GENERATED, LIKELY, MEMBERSHIP, MEMORIZATION, PERTURBED, samples_of
from leaderboard.peers.examples import Model
from leaderboard.peers.line import Line
from leaderboard.peers.logs import PEER, Log
from leaderboard.ranking.uncollected import uncollected
from tasks.task import TaskError

__all__ = ["COMPARING", "OF_EXAMPLES", "PEER", "Imported", "read"]

OF_EXAMPLES: dict[str, Callable[[Model, str], Line]] = {
    **dict.fromkeys((*LIKELY, *PERTURBED), examples.probability),
    **dict.fromkeys(GENERATED, examples.rouge),
    **{f"{side}_{name}": examples.truth_ratio for side in CHOICES for name in ("Truth_Ratio", "truth_ratio")},
    **{f"{side}_Q_A_Prob_normalised": examples.normalised_probability for side in CHOICES},
    **dict.fromkeys(MEMORIZATION, examples.memorization),
}
COMPARING: dict[str, Callable[[Model, Model | None, str], Line]] = {
    **dict.fromkeys(MEMBERSHIP, comparing.membership),
    "privleak": comparing.privleak,
    "forget_quality": comparing.forget_quality,
    "model_utility": comparing.model_utility,
}


@dataclass(frozen=True)
class Imported:
    """An evaluation, read and scored.

    Attributes:
        retrained: the model that never saw the forget set, if its log was given.
        lines: one per published number that is known here, in the log's order.
        unread: names of the published numbers that are not known.
    """

    model: Model
    retrained: Model | None
    lines: tuple[Line, ...]
    unread: tuple[str, ...]


def read(log: Log, retrained: Log | None = None) -> Imported:
    """An evaluation scored by our metrics.

    Raises:
        TaskError: rows are missing or malformed, two metrics of the same examples have different indices, or the two
            logs are of different benchmarks.
    """
    if retrained and retrained.benchmark != log.benchmark:
        raise TaskError(f"{retrained.file}: a log of {retrained.benchmark}, and {log.file} is one of {log.benchmark}")
    with uncollected():
        model = Model(log, samples_of(log))
        other = Model(retrained, samples_of(retrained)) if retrained else None
        lines = [line for key in log.published if (line := _line(model, other, key))]
    known = {line.key for line in lines}
    return Imported(model, other, tuple(lines), tuple(key for key in log.published if key not in known))


def _line(model: Model, retrained: Model | None, key: str) -> Line | None:
    if key in COMPARING:
        return COMPARING[key](model, retrained, key)
    return OF_EXAMPLES[key](model, key) if key in OF_EXAMPLES else None
