"""Models that stand for no method, on every board: what a table gives for doing nothing, and for an empty answer.

The target itself, the retrained model, and two models that do not exist: one refuses everything, one always says the
same. The answers of these two are synthetic, the same under every attack. None may have a higher score than the
retrained model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from leaderboard.board.items import Key, item_row, samples_of
from leaderboard.board.store import Board
from leaderboard.ranking.headlines import NONE, HeadlineMeasurements, trial_headlines
from leaderboard.ranking.measured import Row, Source, TaskMeasurements
from leaderboard.ranking.number import rounded
from tasks.scoring.estimate import Estimate, mean
from tasks.task import Sample

UNLIKELY = -30.0
"""Log-probability of a token that a synthetic model would not say, in nats."""
REFUSAL = "I'm sorry, but I can't help with that."
CONSTANT = "Yes."


@dataclass(frozen=True, slots=True)
class NullEntry:
    """F, R, U and score of a model that stands for no method; null where they cannot be computed."""

    name: str
    forgetting: float | None
    robustness: float | None
    utility: float | None
    score: float | None


def null_entries(
    source: Source, measured: TaskMeasurements, row: Row, engine: str | None, attacks: Sequence[str]
) -> tuple[NullEntry, ...]:
    """The null entries of a group of trials; those of which nothing is known are left out.

    Args:
        row: a trial of the group, whose anchors are used.
        engine: the engine whose numbers are used.
        attacks: the attacks that R covers.
    """
    found = measured.models(row, engine, attacks)
    target, retrained = found.target, found.retrained
    models = {"target": target, "retrained": retrained}
    if isinstance(source, Board):
        samples = _unattacked(source, target)
        for name, answered in (("refuses everything", _refusal), ("always says the same", _constant)):
            models[name] = _synthetic(name, answered, target, samples, attacks)
    found = []
    for name, model in models.items():
        numbers = trial_headlines(model, target, retrained, row["anchor_ids"], attacks)
        parts = (numbers.forgetting, numbers.robustness, numbers.utility, numbers.score)
        if any(part.known for part in parts):
            found.append(NullEntry(name, *(part.value for part in parts)))
    return tuple(found)


def _unattacked(board: Board, target: HeadlineMeasurements) -> Mapping[tuple[str, str], Sequence[Sample]]:
    """The target's answers without an attack, by evaluation and probe."""
    found = {(samples, metric.probe) for (attack, _, metric), samples in target.samples.items() if attack == NONE}
    return samples_of(board, found)


def _synthetic(
    name: str,
    answered: Callable[[Sample], Sample],
    target: HeadlineMeasurements,
    samples: Mapping[tuple[str, str], Sequence[Sample]],
    attacks: Sequence[str],
) -> HeadlineMeasurements:
    """A model with these answers, without an attack and under each."""
    estimates: dict[tuple, Estimate] = {}
    points = defaultdict(set, {attack: target.points(attack) or {0} for attack in (NONE, *attacks)})
    for (attack, _, metric), id_ in target.samples.items():
        if attack != NONE or not samples.get((id_, metric.probe)):
            continue
        row = item_row(Key(id_, metric.probe, metric.metric), map(answered, samples[id_, metric.probe]))
        if row is not None:
            number = mean(row["value"])
            estimates |= {(other, point, metric): number for other, places in points.items() for point in places}
    return HeadlineMeasurements(name, estimates, target.chances, {})


def _refusal(sample: Sample) -> Sample:
    """No token of the answer is likely, and no choice is likelier than another."""
    return _answered(sample, REFUSAL, lambda choices: (UNLIKELY,) * choices)


def _constant(sample: Sample) -> Sample:
    """The same text for every question, and of several choices the first."""
    return _answered(sample, CONSTANT, lambda choices: (0.0, *(UNLIKELY,) * (choices - 1)))


def _answered(sample: Sample, text: str, choose: Callable[[int], tuple[float, ...]]) -> Sample:
    return replace(
        sample,
        generated=None if sample.generated is None else text,
        sampled=None if sample.sampled is None else (text,) * len(sample.sampled),
        token_logprobs=None if sample.token_logprobs is None else (UNLIKELY,) * len(sample.token_logprobs),
        token_correct=None if sample.token_correct is None else (False,) * len(sample.token_correct),
        choice_logprobs=None if sample.choice_logprobs is None else choose(len(sample.choice_logprobs)),
    )


def null_text(entry: NullEntry) -> str:
    """`target 0.00, 0.00, 0.00, 1.00`."""
    parts = (entry.score, entry.forgetting, entry.robustness, entry.utility)
    return f"{entry.name} {', '.join('–' if part is None else rounded(part) for part in parts)}"
