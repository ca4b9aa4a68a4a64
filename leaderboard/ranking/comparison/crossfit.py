"""The headlines of one trial in every replicate, with the worst of attacks, points and probes chosen on other items.

The largest of noisy numbers is too large: with ten attacks of equal strength, the strongest on these items is the
luckiest. So the worst is chosen on four fifths of the items and read on the last fifth, for each fifth in turn;
numerators and denominators are summed before they are divided.

A replicate chooses again, from shares that move by half as much as its items say. Were they to move by all of it, the
choice would be as noisy as the sample's and the draw's noise together, and a standard error up to 1.4 times the true
one; were the sample's choice kept, it would be too small by up to a third where attacks are of equal strength
(docs/statistics.md has the simulations).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from leaderboard.ranking.comparison.resampling import Array, Resampling

NONE = "none"
MOVED = 0.5
"""By how much of its difference from the sample a replicate's shares move what it chooses."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a trial was asked: a probe's metric, under an attack at a point of its curve."""

    attack: str
    point: int
    probe: int


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The distances between the anchors on some metrics, in every replicate: what shares are shares of.

    Attributes:
        resamplings: the draws of each metric's items.
        sums: (metrics, folds, 1 + replicates), the target less the retrained model or less chance.
        inverse: of the same shape, 1 over the sums of the other folds; 0 where the anchors do not differ on them.
    """

    resamplings: tuple[Resampling, ...]
    sums: Array
    inverse: Array

    @classmethod
    def of(cls, metrics: Sequence[tuple[Resampling, Array]]) -> Units:
        """
        Args:
            metrics: for each the draws of its items, and the distance on each item, in the order of the draws.
        """
        sums = np.concatenate([resampling.fold_sums(distance[None]) for resampling, distance in metrics])
        others = sums.sum(1, keepdims=True) - sums
        return cls(tuple(resampling for resampling, _ in metrics), sums, _divided(np.ones_like(others), others))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A cell for every fold and replicate, which was chosen on the items of the other folds.

    Attributes:
        share: (folds, 1 + replicates), the cell's share on the items of the other folds, by which it was chosen.
        cell: its index, or an array of the same shape where it is not one cell everywhere.
    """

    share: Array
    cell: int | NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A trial's excess over the zero, item by item.

    Attributes:
        cells: sorted by probe, attack and point.
        excess: by probe the rows of its cells: (cells of the probe, items), items in the order of the unit's draws.
    """

    cells: tuple[Cell, ...]
    units: Units
    excess: tuple[Array, ...]

    @classmethod
    def of(cls, units: Units, excess: Mapping[Cell, Array]) -> Cells:
        """
        Args:
            excess: by cell, the model less the zero on each item, in the order of the unit's draws.
        """
        cells = sorted(excess, key=lambda cell: (cell.probe, cell.attack, cell.point))
        rows: list[list[Array]] = [[] for _ in units.resamplings]
        for cell in cells:
            rows[cell.probe].append(excess[cell])
        return cls(tuple(cells), units, tuple(np.array(some) for some in rows))

    def drawn(self) -> Drawn:
        """Their sums in every replicate, which take far more memory."""
        sums = np.empty((len(self.cells), *self.units.sums.shape[1:]))
        start = 0
        for resampling, rows in zip(self.units.resamplings, self.excess, strict=True):
            if len(rows):
                resampling.fold_sums(rows, out=sums[start : start + len(rows)])
                start += len(rows)
        return Drawn(self.cells, self.units, sums)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The excess of cells, summed over each fold's items: (cells, folds, 1 + replicates)."""

    cells: tuple[Cell, ...]
    units: Units
    sums: Array

    def plain(self, indices: Iterable[int], sign: float = 1.0) -> Array:
        """The largest share of some cells, chosen on the items that it is read on; with sign -1 the smallest."""
        units = self.units.sums.sum(1)
        shares = (_divided(self.sums[index].sum(0), units[self.cells[index].probe]) for index in indices)
        return reduce(np.maximum if sign > 0 else np.minimum, shares)

    def choice(self, index: int, sign: float = 1.0) -> Choice:
        """One cell, whatever the items say; with sign -1, `largest` of such choices is the smallest."""
        sums = self.sums[index]
        share = np.subtract(sums.sum(0), sums)
        share *= self.units.inverse[self.cells[index].probe]
        share *= MOVED
        share += share[:, :1] * ((1 - MOVED) / MOVED)
        return Choice(share if sign > 0 else np.negative(share, out=share), index)

    def read(self, choice: Choice) -> Array:
        """The share of the chosen cells on the folds that had no part in choosing them: (1 + replicates,)."""
        if isinstance(choice.cell, int):
            above, below = self.sums[choice.cell], self.units.sums[self.cells[choice.cell].probe]
            return _divided(above.sum(0), below.sum(0))
        probes = np.array([cell.probe for cell in self.cells], dtype=np.uint32)
        below = self.units.sums[0] if len(self.units.sums) == 1 else _taken(self.units.sums, probes.take(choice.cell))
        return _divided(_taken(self.sums, choice.cell).sum(0), below.sum(0))


def largest(choices: Sequence[Choice]) -> tuple[Choice, NDArray[np.integer]]:
    """Of several choices the one with the largest share, and its place among them: the first where shares are equal."""
    if len(choices) == 1:
        return choices[0], np.zeros(choices[0].share.shape, dtype=np.uint8)
    best = choices[0].share.copy()
    places = np.uint8 if len(choices) <= 256 else np.uint32
    place = np.zeros(best.shape, dtype=places)
    for index, choice in enumerate(choices[1:], 1):
        larger = choice.share > best
        np.maximum(best, choice.share, out=best)
        np.maximum(place, larger.view(np.uint8) * places(index), out=place)  # what comes later has a larger place
    if all(isinstance(choice.cell, int) for choice in choices):
        return Choice(best, np.array([choice.cell for choice in choices], dtype=np.uint32).take(place)), place
    cells = np.empty((len(choices), *best.shape), dtype=np.uint32)
    for index, choice in enumerate(choices):
        cells[index] = choice.cell
    return Choice(best, _taken(cells, place)), place


@dataclass(frozen=True, slots=True, eq=False)
class Replicates:
    """The headlines of a trial: arrays of (1 + replicates,), the estimate first.

    Attributes:
        recovery, curves, areas: as in `leaderboard.ranking.headlines.Headlines`.
        worst: by attack, the share of replicates and folds in which it is the worst.
        cells: what they were made of, of knowledge and of utility.
        levels: by level beside items and runs, and by its seed, the same with that seed alone and without replicates.
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
    cells: tuple[Cells, Cells]
    levels: Mapping[str, Mapping[str, Replicates]] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Array]:
        """F, R, U and score by their names, with the worst chosen on the items that it is read on."""
        knowledge, utility = (cells.drawn() for cells in self.cells)
        unattacked = [index for index, cell in enumerate(knowledge.cells) if cell.attack == NONE]
        found = {
            "forgetting": 1 - _clip(knowledge.plain(unattacked)),
            "robustness": 1 - _clip(knowledge.plain(range(len(knowledge.cells)))),
            "utility": _clip(utility.plain(range(len(utility.cells)), -1.0)),
        }
        return {**found, "score": _harmonic(list(found.values()))}


def replicate(knowledge: Cells, utility: Cells) -> Replicates:
    """The headlines in every replicate.

    Args:
        knowledge: every attack, `none` included, at every point on every knowledge metric.
        utility: the utility metrics, without an attack.
    """
    known, useful = knowledge.drawn(), utility.drawn()
    at: dict[str, dict[int, list[int]]] = {NONE: {}}
    for index, cell in enumerate(known.cells):
        at.setdefault(cell.attack, {}).setdefault(cell.point, []).append(index)
    strongest: dict[str, Choice] = {}
    curves: dict[str, dict[int, Array]] = {}
    for attack, points in at.items():
        on_curve = {point: _largest_cell(known, points[point]) for point in sorted(points)}
        strongest[attack] = largest(list(on_curve.values()))[0]
        if len(on_curve) > 1:
            curves[attack] = {point: known.read(choice) for point, choice in on_curve.items()}
    recovery = {attack: known.read(choice) for attack, choice in strongest.items()}
    curves = {attack: {0: recovery[NONE], **curve} for attack, curve in curves.items()}
    kept = [1 - _clip(found) for found in recovery.values()]
    worst, places = largest(list(strongest.values()))
    forgetting = kept[0]
    robustness = np.minimum(1 - _clip(known.read(worst)), forgetting)
    left = _clip(useful.read(_largest_cell(useful, range(len(useful.cells)), sign=-1.0)))
    times = np.bincount(places.ravel(), minlength=len(strongest)) / places.size
    return Replicates(
        forgetting,
        robustness,
        _harmonic(kept),
        left,
        _harmonic([forgetting, robustness, left]),
        recovery,
        curves,
        {attack: _area(curve) for attack, curve in curves.items()},
        dict(zip(strongest, times.tolist(), strict=True)),
        (knowledge, utility),
    )


def _largest_cell(cells: Drawn, indices: Iterable[int], sign: float = 1.0) -> Choice:
    return largest([cells.choice(index, sign) for index in indices])[0]


def _taken(values: NDArray, place: NDArray[np.integer]) -> NDArray:
    """Of each column of (choices, ...) the value at its place."""
    size = place.size
    flat = np.multiply(place, size, dtype=np.int64).reshape(-1)
    flat += np.arange(size)
    return values.reshape(-1).take(flat).reshape(place.shape)


def _divided(above: Array, below: Array) -> Array:
    """The quotient; 0 where nothing was drawn that the anchors differ on."""
    if below.all():  # nearly always, and several times as fast
        return above / below
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _clip(values: Array) -> Array:
    return np.minimum(np.maximum(values, 0.0), 1.0)


def _harmonic(terms: Sequence[Array]) -> Array:
    """Harmonic mean of numbers in [0, 1]; 0 where one is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return len(terms) / sum(1 / term for term in terms)


def _area(curve: Mapping[int, Array]) -> Array:
    """As `tasks.scoring.headline.area`, in every replicate."""
    points = sorted(curve)
    parts = [(after - before) / 2 * (curve[before] + curve[after]) for before, after in pairwise(points)]
    return np.sum(parts, axis=0) / (points[-1] - points[0])
