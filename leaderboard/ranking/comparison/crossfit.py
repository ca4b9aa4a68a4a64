"""The headlines of one trial in every replicate, with the worst of attacks, points and probes chosen on other items.

The largest of noisy numbers is too large: with ten attacks of equal strength, the strongest on these items is the
luckiest. So the worst is chosen on four fifths of the items and read on the last fifth, for each fifth in turn;
numerators and denominators are summed before they are divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from leaderboard.ranking.comparison.resampling import Array, Resampling

NONE = "none"


@dataclass(frozen=True, slots=True)
class Cell:
    """What a trial was asked: a probe's metric, under an attack at a point of its curve."""

    attack: str
    point: int
    probe: int


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """The distance between the anchors on one metric, in every replicate: what a share is a share of.

    Attributes:
        resampling: the draws of its items.
        sums: (folds, 1 + replicates), the target less the retrained model or less chance.
    """

    resampling: Resampling
    sums: Array

    @classmethod
    def of(cls, resampling: Resampling, target: Array, zero: Array | float) -> Unit:
        """
        Args:
            target, zero: (items,) in the order of the resampling; `zero` may be one number, such as chance.
        """
        return cls(resampling, resampling.fold_sums((target - zero)[:, None])[..., 0])


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A trial's excess over the zero, summed over each fold's items: (folds, 1 + replicates, cells)."""

    cells: tuple[Cell, ...]
    units: tuple[Unit, ...]
    sums: Array

    @classmethod
    def of(cls, units: Sequence[Unit], excess: Mapping[Cell, Array]) -> Cells:
        """
        Args:
            excess: by cell, the model less the zero on each item, in the order of the unit's resampling.
        """
        cells = sorted(excess, key=lambda cell: (cell.probe, cell.attack, cell.point))
        parts = []
        for index, unit in enumerate(units):
            columns = [excess[cell] for cell in cells if cell.probe == index]
            if columns:
                parts.append(unit.resampling.fold_sums(np.stack(columns, axis=1)))
        return cls(tuple(cells), tuple(units), np.concatenate(parts, axis=2))

    def plain(self, chosen: Sequence[int], *, largest: bool = True) -> Array:
        """The largest (or smallest) share among some cells, chosen on the items that it is read on."""
        whole = self.sums.sum(0)
        shares = [_divided(whole[:, index], self.units[self.cells[index].probe].sums.sum(0)) for index in chosen]
        return np.max(shares, axis=0) if largest else np.min(shares, axis=0)

    def extreme(self, chosen: Sequence[int], *, largest: bool = True) -> tuple[Array, NDIndex]:
        """The largest (or smallest) share among some cells, in every replicate, and which cell it was in each fold.

        Returns:
            (1 + replicates,), not clipped; and (folds, 1 + replicates) of places in `chosen`.
        """
        sums = self.sums[:, :, list(chosen)]
        probes = [self.cells[index].probe for index in chosen]
        units = np.stack([self.units[probe].sums for probe in probes], axis=2) if len(set(probes)) > 1 else None
        single = self.units[probes[0]].sums
        if len(probes) == 1:
            return _divided(sums[:, :, 0].sum(0), single.sum(0)), np.zeros(sums.shape[:2], dtype=np.int64)
        whole = sums.sum(0)
        sign = 1.0 if largest else -1.0
        worst = np.empty(sums.shape[:2], dtype=np.int64)
        above, below = np.zeros(sums.shape[1]), np.zeros(sums.shape[1])
        rows = np.arange(sums.shape[1])
        for fold in range(len(sums)):
            others = whole - sums[fold]
            if units is None:  # one denominator: its sign is all that the order depends on
                rest = sign * np.sign(single.sum(0) - single[fold])
                others *= rest[:, None]
            else:
                rest = units.sum(0) - units[fold]
                others = _divided(others, rest)
                others *= sign
            place = worst[fold] = others.argmax(1)
            above += sums[fold][rows, place]
            below += single[fold] if units is None else units[fold][rows, place]
        return _divided(above, below), worst


NDIndex = np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Replicates:
    """The headlines of a trial, or the means of several: arrays of (1 + replicates,), the estimate first.

    Attributes:
        recovery, curves, areas: as in `leaderboard.ranking.headlines.Headlines`.
        worst: by attack, the share of replicates and folds in which it is the worst.
        plain: F, R, U and score by their names, with the worst chosen on the items that it is read on.
    """

    forgetting: Array
    robustness: Array
    robustness_harmonic: Array
    utility: Array
    score: Array
    recovery: Mapping[str, Array]
    curves: Mapping[str, Mapping[int, Array]]
    areas: Mapping[str, Array]
    worst: Mapping[str, float]
    plain: Mapping[str, Array]


def replicate(knowledge: Cells, utility: Cells) -> Replicates:
    """The headlines in every replicate.

    Args:
        knowledge: every attack, `none` included, at every point on every knowledge metric.
        utility: the utility metrics, without an attack.
    """
    attacks = list(dict.fromkeys([NONE, *(cell.attack for cell in knowledge.cells)]))
    at = {attack: [i for i, cell in enumerate(knowledge.cells) if cell.attack == attack] for attack in attacks}
    recovery = {attack: knowledge.extreme(places)[0] for attack, places in at.items()}
    forgetting = 1 - _clip(recovery[NONE])
    worst, places = knowledge.extreme(range(len(knowledge.cells)))
    robustness = np.minimum(1 - _clip(worst), forgetting)
    kept = _clip(utility.extreme(range(len(utility.cells)), largest=False)[0])
    curves = {
        attack: {0: recovery[NONE], **{p: _at_point(knowledge, found, p) for p in points}}
        for attack, found in at.items()
        if len(points := sorted({knowledge.cells[i].point for i in found})) > 1
    }
    times = np.bincount(places.ravel(), minlength=len(knowledge.cells)) / places.size
    return Replicates(
        forgetting,
        robustness,
        _harmonic([1 - _clip(found) for found in recovery.values()]),
        kept,
        _harmonic([forgetting, robustness, kept]),
        recovery,
        curves,
        {attack: _area(curve) for attack, curve in curves.items()},
        {attack: float(sum(times[i] for i in found)) for attack, found in at.items()},
        _plain(knowledge, at[NONE], utility),
    )


def _plain(knowledge: Cells, unattacked: Sequence[int], utility: Cells) -> dict[str, Array]:
    found = {
        "forgetting": 1 - _clip(knowledge.plain(unattacked)),
        "robustness": 1 - _clip(knowledge.plain(range(len(knowledge.cells)))),
        "utility": _clip(utility.plain(range(len(utility.cells)), largest=False)),
    }
    return {**found, "score": _harmonic(list(found.values()))}


def _at_point(knowledge: Cells, places: Sequence[int], point: int) -> Array:
    return knowledge.extreme([i for i in places if knowledge.cells[i].point == point])[0]


def _divided(above: Array, below: Array) -> Array:
    """The quotient; 0 where nothing was drawn that the anchors differ on."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _clip(values: Array) -> Array:
    return np.clip(values, 0.0, 1.0)


def _harmonic(terms: Sequence[Array]) -> Array:
    """Harmonic mean of numbers in [0, 1]; 0 where one is 0."""
    stacked = np.stack(terms)
    positive = (stacked > 1e-300).all(0)
    safe = np.where(positive, stacked, 1.0)
    return np.where(positive, len(terms) / (1 / safe).sum(0), 0.0)


def _area(curve: Mapping[int, Array]) -> Array:
    """As `tasks.scoring.headline.area`, in every replicate."""
    points = sorted(curve)
    parts = [(after - before) / 2 * (curve[before] + curve[after]) for before, after in pairwise(points)]
    return np.sum(parts, axis=0) / (points[-1] - points[0])
