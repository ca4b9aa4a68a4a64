"""Questions that two entries answer differently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from leaderboard.board.items import Key, Scored, read_items, scored_items
from leaderboard.board.store import Board
from leaderboard.ranking.entry import Trial
from leaderboard.ranking.headlines import NONE, HeadlineMetric
from leaderboard.ranking.measured import Source, TaskMeasurements

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
    source: Source, measured: TaskMeasurements, one: Sequence[Trial], other: Sequence[Trial], attacks: Iterable[str]
) -> tuple[Moved, ...]:
    """The questions whose answers differ most, the largest difference first.

    Args:
        attacks: those under which answers are compared, besides none.
    """
    attacks = list(attacks)
    sides = [[trial for trial in trials if trial.engine] for trials in (one, other)]
    models = [
        [model for trial in trials for model in measured.by_seed(trial.row, trial.engine, attacks)] for trials in sides
    ]
    asked = {
        (attack, max(model.points(attack), default=0), metric)
        for model in models[0]
        for attack in dict.fromkeys([NONE, *attacks])
        for metric in sorted(model.metrics("knowledge") | (model.metrics("utility") if attack == NONE else set()))
    }
    keys = {
        (side, place, where): Key(samples, where[2].probe, where[2].metric)
        for side, same in enumerate(models)
        for place, model in enumerate(same)
        for where in asked
        if (samples := model.samples.get(where))
    }
    wanted = {
        key: {value}
        for (side, place, where), key in keys.items()
        if (value := models[side][place].estimates[where].value) is not None
    }
    scored = read_items(source, wanted) if isinstance(source, Board) else scored_items(source["items"])
    found: list[Moved] = []
    for attack, point, metric in sorted(asked):
        means = [_mean([scored.get(keys.get((side, place, (attack, point, metric)))) for place in range(len(same))])
                 for side, same in enumerate(models)]  # fmt: skip
        if means[0] and means[1] and means[0].items == means[1].items:
            found += _moved(metric, attack, *means)
    found.sort(key=lambda moved: (-abs(moved.one - moved.other), moved.probe, moved.attack, moved.item))
    return tuple(found[:MOST])


def _moved(metric: HeadlineMetric, attack: str, one: Scored, other: Scored) -> list[Moved]:
    return [
        Moved(metric.headline, metric.probe, metric.metric, attack, item, float(a), float(b))
        for item, a, b in zip(one.items, one.values, other.values, strict=True)
        if a != b
    ]


def _mean(runs: Sequence[Scored | None]) -> Scored | None:
    """The mean over runs; None where a run has no items, or others."""
    known = [run for run in runs if run is not None]
    if not known or len(known) < len(runs) or len({run.items for run in known}) > 1:
        return None
    return Scored(known[0].items, np.mean([run.values for run in known], axis=0))
