"""The headlines of one trial in every replicate, with the worst of attacks, points and probes chosen on other items.

The largest of noisy numbers is too large: with ten attacks of equal strength, the strongest on these items is the
luckiest. So the worst is chosen on four fifths of the items and read on the last fifth, for each fifth in turn;
numerators and denominators are summed before they are divided.

A replicate chooses again, from shares that move by half as much as its items say. Were they to move by all of it, the
choice would be as noisy as the sample's and the draw's noise together, and a standard error up to 1.4 times the true
one; were the sample's choice kept, it would be too small by up to a third where attacks are of equal strength
(docs/statistics.md has the simulations).

Replicates are in single precision, which halves their time and memory; the estimate itself is in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leaderboard.ranking.comparison.resampling import Array, Resampling, Single

NONE = "none"
MOVED = 0.5
"""By how much of its difference from the sample a replicate's shares move what it chooses."""


class Cell(NamedTuple):
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
        sample: (metrics, folds), the sums of the sample itself.
    """

    resamplings: tuple[Resampling, ...]
    sums: Single
    inverse: Single
    sample: Array

    @classmethod
    def of(cls, metrics: Sequence[tuple[Resampling, Array]]) -> Units:
        """
        Args:
            metrics: for each the draws of its items, and the distance on each item, in the order of the draws.
        """
        resamplings = tuple(resampling for resampling, _ in metrics)
        sums = np.concatenate([resampling.fold_sums(distance[None]) for resampling, distance in metrics])
        others = sums.sum(1, keepdims=True) - sums
        sample = np.concatenate([distance[None] @ resampling.in_fold for resampling, distance in metrics])
        return cls(resamplings, sums, _divided(np.ones_like(others), others), sample)


class Choice(NamedTuple):
    """A cell for every fold and replicate, which was chosen on the items of the other folds.

    Attributes:
        share: (folds, 1 + replicates), the cell's share on the items of the other folds, by which it was chosen.
        above, below: of the same shape, the sums of its excess and of its unit over the items of the fold itself.
        cells: (folds,), the cells of the sample.
    """

    share: Single
    above: Single
    below: Single
    cells: NDArray[np.intp]


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

    def drawn(self, sign: float = 1.0) -> Drawn:
        """Each cell as a choice of its own, in every replicate, which takes far more memory.

        Args:
            sign: with -1, `largest` of the choices is the cell with the smallest share.
        """
        choices: list[Choice] = []
        sample: list[Array] = []
        for probe, (resampling, rows) in enumerate(zip(self.units.resamplings, self.excess, strict=True)):
            if not len(rows):
                continue
            sums = resampling.fold_sums(rows)
            shares = sums.sum(1, keepdims=True) - sums
            shares *= self.units.inverse[probe] * np.float32(sign * MOVED)
            shares += shares[:, :, :1] * np.float32((1 - MOVED) / MOVED)
            for share, above in zip(shares, sums, strict=True):
                place = np.full(len(above), len(choices))
                choices.append(Choice(share, above, self.units.sums[probe], place))
            sample.append(rows @ resampling.in_fold)
        return Drawn(self.cells, self.units, tuple(choices), np.concatenate(sample))


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The choices that there are.

    Attributes:
        sample: (cells, folds), the excess of each cell summed over the fold's items, of the sample itself.
    """

    cells: tuple[Cell, ...]
    units: Units
    choices: tuple[Choice, ...]
    sample: Array

    def read(self, choice: Choice) -> Array:
        """The share of the chosen cells on the folds that had no part in choosing them: (1 + replicates,)."""
        found = _divided(choice.above.sum(0), choice.below.sum(0)).astype(np.float64)
        folds = np.arange(len(choice.cells))
        probes = [self.cells[cell].probe for cell in choice.cells]
        above, below = self.sample[choice.cells, folds].sum(), self.units.sample[probes, folds].sum()
        found[0] = above / below if below else 0.0
        return found

    def largest(self, indices: Iterable[int]) -> Choice:
        return largest([self.choices[index] for index in indices])[0]

    def plain(self, indices: Iterable[int], sign: float = 1.0) -> Array:
        """The largest share of some cells, chosen on the items that it is read on; with sign -1 the smallest."""
        shares = (self.read(self.choices[index]) for index in indices)
        return reduce(np.maximum if sign > 0 else np.minimum, shares)


def largest(choices: Sequence[Choice]) -> tuple[Choice, NDArray[np.unsignedinteger]]:
    """Of several choices the one with the largest share, and its place among them: the first where shares are equal."""
    first = choices[0]
    places = np.uint8 if len(choices) <= 256 else np.uint32
    place = np.zeros(first.share.shape, dtype=places)
    if len(choices) == 1:
        return first, place
    best, larger = first.share.copy(), np.empty(place.shape, dtype=bool)
    for index, choice in enumerate(choices[1:], 1):
        np.greater(choice.share, best, out=larger)
        np.maximum(best, choice.share, out=best)
        np.maximum(place, larger.view(np.uint8) * places(index), out=place)  # what comes later has a larger place
    places_of = ((choice, place == index) for index, choice in enumerate(choices))
    chosen = [(choice, where) for choice, where in places_of if where.any()]
    above = _of_each([(choice.above, where) for choice, where in chosen])
    below = _of_each([(choice.below, where) for choice, where in chosen])
    cells = np.array([choice.cells for choice in choices])[place[:, 0], np.arange(len(place))]
    return Choice(best, above, below, cells), place


def _of_each(parts: Sequence[tuple[Single, NDArray[np.bool_]]]) -> Single:
    """Of several arrays each where it is chosen; everywhere one is."""
    array, where = parts[0]
    if all(other is array for other, _ in parts):
        return array
    found = array * where
    for array, where in parts[1:]:
        found += array * where
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Replicates:
    """The headlines of a trial: arrays of (1 + replicates,), the estimate first.

    Attributes:
        recovery, curves, areas: as in `leaderboard.ranking.headlines.Headlines`.
        worst: by attack, the share of replicates and folds in which it is the worst.
        cells: what they were made of, of knowledge and of utility; None where they were read between two models.
        per_item: what is brought back of each item by whichever attack brings back most of it; on the probe of which
            most is. Null where that is not known.
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
    cells: tuple[Cells, Cells] | None
    per_item: Array | None = None
    levels: Mapping[str, Mapping[str, Replicates]] = field(default_factory=dict)

    @property
    def plain(self) -> dict[str, Array]:
        """F, R, U and score by their names, with the worst chosen on the items that it is read on."""
        if self.cells is None:
            return {}
        knowledge, utility = (cells.drawn() for cells in self.cells)
        unattacked = [index for index, cell in enumerate(knowledge.cells) if cell.attack == NONE]
        found = {
            "forgetting": 1 - _clip(knowledge.plain(unattacked)),
            "robustness": 1 - _clip(knowledge.plain(range(len(knowledge.cells)))),
            "utility": _clip(utility.plain(range(len(utility.cells)), -1.0)),
        }
        return {**found, "score": _harmonic(list(found.values()))}


def replicate(knowledge: Cells, utility: Cells, per_item: Cells | None = None) -> Replicates:
    """The headlines in every replicate.

    Args:
        knowledge: every attack, `none` included, at every point on every knowledge metric.
        utility: the utility metrics, without an attack.
        per_item: one cell for each knowledge metric: of each item the most that any attack brings back.
    """
    known, useful = knowledge.drawn(), utility.drawn(sign=-1.0)
    at: dict[str, dict[int, list[int]]] = {NONE: {}}
    for index, cell in enumerate(known.cells):
        at.setdefault(cell.attack, {}).setdefault(cell.point, []).append(index)
    strongest: dict[str, Choice] = {}
    curves: dict[str, dict[int, Array]] = {}
    for attack, points in at.items():
        on_curve = {point: known.largest(points[point]) for point in sorted(points)}
        strongest[attack] = largest(list(on_curve.values()))[0]
        if len(on_curve) > 1:
            curves[attack] = {point: known.read(choice) for point, choice in on_curve.items()}
    recovery = {attack: known.read(choice) for attack, choice in strongest.items()}
    curves = {attack: {0: recovery[NONE], **curve} for attack, curve in curves.items()}
    kept = [1 - _clip(found) for found in recovery.values()]
    worst, places = largest(list(strongest.values()))
    forgetting = kept[0]
    robustness = np.minimum(1 - _clip(known.read(worst)), forgetting)
    left = _smallest(useful)
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
        _worst_of_each(per_item) if per_item else None,
    )


def _worst_of_each(per_item: Cells) -> Array:
    found = per_item.drawn()
    return found.read(found.largest(range(len(found.cells))))


def smallest_share(cells: Cells) -> Array:
    """U of a model in every replicate, from the utility metrics alone: as in `replicate`."""
    return _smallest(cells.drawn(sign=-1.0))


def _smallest(useful: Drawn) -> Array:
    return _clip(useful.read(useful.largest(range(len(useful.cells)))))


def _divided(above: Single, below: Single) -> Single:
    """The quotient; 0 where nothing was drawn that the anchors differ on."""
    if below.all():  # nearly always, and several times as fast
        return above / below
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def _clip(values: Array) -> Array:
    return np.minimum(np.maximum(values, 0.0), 1.0)


def _harmonic(terms: Sequence[Array]) -> Array:
    """Harmonic mean of numbers in [0, 1]; 0 where one is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return len(terms) / reduce(np.add, [1 / term for term in terms])


def _area(curve: Mapping[int, Array]) -> Array:
    """As `tasks.scoring.headline.area`, in every replicate."""
    points = sorted(curve)
    parts = [(after - before) / 2 * (curve[before] + curve[after]) for before, after in pairwise(points)]
    return np.sum(parts, axis=0) / (points[-1] - points[0])
