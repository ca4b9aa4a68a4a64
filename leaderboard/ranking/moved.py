"""Questions that two entries answer differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leaderboard.board.items import Scored
from leaderboard.board.schema import UNLEARNED
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.headlines import NONE, HeadlineMeasurements
from leaderboard.ranking.replicated import NoItems, Replicating
from leaderboard.ranking.trial import Trial

MOST = 100
"""Questions that a comparison keeps."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A question, under an attack at the last point of its curve.

    Attributes:
        headline: `knowledge` or `utility`.
        one, other: the metric, as means over each entry's runs and the attack's seeds.
    """

    headline: str
    probe: str
    metric: str
    attack: str
    item: str
    one: float
    other: float


def moved_items(
    replicating: Replicating, one: Sequence[Trial], other: Sequence[Trial], attacks: Sequence[str]
) -> tuple[Moved, ...]:
    """The questions whose answers differ most, the largest difference first.

    Args:
        attacks: those under which answers are compared, besides none.
    """
    models = [
        [_mean_over_seeds(replicating, trial, attacks) for trial in same if trial.engine] for same in (one, other)
    ]
    asked = {
        (attack, max(model.points(attack), default=0), metric)
        for model in models[0]
        for attack in dict.fromkeys([NONE, *attacks])
        for metric in model.metrics("knowledge") | (model.metrics("utility") if attack == NONE else frozenset())
    }
    found: list[Moved] = []
    for attack, point, metric in sorted(asked):
        try:
            first, second = (
                _mean([replicating.scored(model, attack, point, metric) for model in same]) for same in models
            )
        except NoItems:
            continue
        if first and second and first[0] == second[0]:
            found += [
                Moved(metric.headline, metric.probe, metric.metric, attack, item, float(a), float(b))
                for item, a, b in zip(*first, second[1], strict=True)
                if a != b
            ]
    found.sort(key=lambda moved: (-abs(moved.one - moved.other), moved.probe, moved.attack, moved.item))
    return tuple(found[:MOST])


def _mean_over_seeds(replicating: Replicating, trial: Trial, attacks: Sequence[str]) -> HeadlineMeasurements:
    model = replicating.measured.model(trial.row["trial"], UNLEARNED, trial.engine)
    return replicating.measured.models(model, trial.row, trial.engine, attacks).unlearned


def _mean(runs: Sequence[Scored]) -> tuple[tuple[str, ...], Array] | None:
    """Items, and means over runs; None where runs have other items."""
    if not runs or len({run.items for run in runs}) > 1:
        return None
    return runs[0].items, np.mean([run.values for run in runs], axis=0)
