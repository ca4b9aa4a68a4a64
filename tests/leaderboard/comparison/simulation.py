"""Entries with a known truth, drawn again and again: what the comparison says of them, against what is so.

A world has 8 attacks (`none` is one), 3 knowledge probes and 2 utility probes of 100 items each. A model's answer to an
item is its share of the distance between the anchors, plus what is common to all models under this attack, plus the
entry's own, plus the run's own. A run's deviation moves all its shares: knowledge up and utility down.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy.special import stdtr
from scipy.stats import norm

from leaderboard.ranking.comparison import Cell, Cells, Replicated, Resampling, Units, compared, replicate, spread
from leaderboard.ranking.comparison.resampling import Array

ATTACKS = ("none", *(f"attack{number}" for number in range(1, 8)))
PROBES, USEFUL, ITEMS, REPLICATES = 3, 2, 100, 400
HEADLINES = ("forgetting", "robustness", "utility", "score")
FORGOT, KEPT = 0.25, 0.93
TOGETHER = 0.6
"""Share of a run's variance that goes with its seed, in whichever entry."""
LEVEL = 0.05


def shares(kind: str) -> Array:
    """What is left of the knowledge, by attack and probe."""
    left = np.full((len(ATTACKS), PROBES), FORGOT)
    if kind == "one":  # one attack on one probe is the strongest
        left[3, 1] = 0.5
    elif kind == "tied":  # all attacks are as strong as the strongest of `one`
        left[1:] = 0.5
    elif kind == "clipped":  # nearly nothing is left: half of all shares are below 0
        left[:] = 0.02
    else:
        raise ValueError(f"no such kind: {kind}")
    return left


@dataclass(frozen=True)
class Case:
    """Two entries.

    Attributes:
        kinds: of each, what is left of its knowledge.
        deviations: of each, the deviation between its runs.
        runs: of each entry.
        paired: whether their runs have the same seeds.
        gap: how much less the second has forgotten, under every attack.
    """

    kinds: tuple[str, str]
    deviations: tuple[float, float]
    runs: int
    paired: bool
    gap: float = 0.0

    @property
    def name(self) -> str:
        one, other = self.deviations
        pairing = "same seeds" if self.paired else "other seeds"
        return f"{' / '.join(self.kinds)}, deviations {one:g} / {other:g}, {self.runs} runs, {pairing}"


@dataclass(frozen=True)
class Outcome:
    """What was found in the draws of a case, by headline.

    Attributes:
        told: (draws,), p-values of there being another difference than there is.
        told_apart: p-values of there being no difference.
        satterthwaite: the same from the own deviation's test.
        covered: (draws, 2), whether each entry's interval holds its truth.
        estimates: (draws, 2).
        differences: (draws,), and `item_errors`, the standard errors that the replicates say.
    """

    told: Mapping[str, Array]
    told_apart: Mapping[str, Array]
    satterthwaite: Mapping[str, Array]
    covered: Mapping[str, Array]
    estimates: Mapping[str, Array]
    item_errors: Mapping[str, Array]
    truth: tuple[Mapping[str, float], Mapping[str, float]]

    def false(self, name: str) -> float:
        """Share of draws in which a difference is seen that is not there."""
        return float(np.mean(self.told[name] < LEVEL))

    def coverage(self, name: str) -> float:
        return float(np.mean(self.covered[name]))

    def power(self, name: str) -> float:
        return float(np.mean(self.told_apart[name] < LEVEL))

    def power_of_satterthwaite(self, name: str) -> float:
        return float(np.mean(self.satterthwaite[name] < LEVEL))

    def bias(self, name: str) -> float:
        return float(np.mean([self.estimates[name][:, side] - self.truth[side][name] for side in (0, 1)]))

    def spread_of_difference(self, name: str) -> float:
        """The standard deviation of the difference over the draws."""
        return float(np.std(self.estimates[name][:, 0] - self.estimates[name][:, 1]))

    def item_error(self, name: str) -> float:
        """What the replicates say it is, over items alone: the root of the mean square."""
        return float(np.sqrt(np.mean(self.item_errors[name] ** 2)))


@cache
def truth(kind: str, deviation: float, gap: float = 0.0) -> dict[str, float]:
    """The headlines' means over runs, with infinitely many items."""
    run = deviation * norm.ppf((np.arange(20_000) + 0.5) / 20_000) if deviation else np.zeros(1)
    left = shares(kind) + gap
    forgetting = 1 - np.clip(left[0].max() + run, 0, 1)
    robustness = np.minimum(1 - np.clip(left.max() + run, 0, 1), forgetting)
    utility = np.clip(KEPT - 0.3 * run, 0, 1)
    with np.errstate(divide="ignore"):
        score = 3 / (1 / forgetting + 1 / robustness + 1 / utility)
    found = (forgetting, robustness, utility, score)
    return {name: float(number.mean()) for name, number in zip(HEADLINES, found, strict=True)}


@cache
def pools() -> list[tuple[list[Resampling], list[Resampling]]]:
    """Draws of items; each world takes one set of them."""
    items = [f"q{number}" for number in range(ITEMS)]

    def several(kind: str, number: int, pool: int) -> list[Resampling]:
        return [Resampling.of(f"{kind}{probe} of {pool}", items, REPLICATES) for probe in range(number)]

    return [(several("known", PROBES, pool), several("useful", USEFUL, pool)) for pool in range(25)]


@dataclass(frozen=True)
class World:
    """The anchors and what all models have in common."""

    target: Array
    retrained: Array
    useful: Array
    common: Array
    units: Units
    useful_units: Units

    @classmethod
    def of(cls, rng: np.random.Generator) -> World:
        known, useful = pools()[rng.integers(len(pools()))]
        difficulty = rng.normal(size=(PROBES + USEFUL, ITEMS))
        target = _logistic(2.5 + difficulty)
        retrained = _logistic(-1.5 + 0.8 * difficulty[:PROBES] + 0.5 * rng.normal(size=(PROBES, ITEMS)))
        distance = target[:PROBES] - retrained
        return cls(
            target[:PROBES],
            retrained,
            target[PROBES:],
            rng.normal(0, 0.15, (len(ATTACKS), PROBES, ITEMS)),
            Units.of(list(zip(known, distance, strict=True))),
            Units.of(list(zip(useful, target[PROBES:], strict=True))),
        )

    def entry(self, rng: np.random.Generator, left: Array, deviations: Array) -> dict[str, Replicated]:
        """
        Args:
            left: share of the knowledge by attack and probe.
            deviations: of each run.
        """
        own = self.common + rng.normal(0, 0.25, self.common.shape)
        own_useful = rng.normal(0, 0.2, self.useful.shape)
        runs = []
        for deviation in deviations:
            noise = rng.normal(0, 0.1, self.common.shape)
            excess = (left + deviation)[:, :, None] * (self.target - self.retrained) + own + noise
            useful = (KEPT - 0.3 * deviation) * self.useful + own_useful + rng.normal(0, 0.05, self.useful.shape)
            cells = {
                Cell(attack, 0, probe): excess[place, probe]
                for place, attack in enumerate(ATTACKS)
                for probe in range(PROBES)
            }
            kept = {Cell("none", 0, probe): useful[probe] for probe in range(USEFUL)}
            runs.append(replicate(Cells.of(self.units, cells), Cells.of(self.useful_units, kept)))
        return {
            name: Replicated(
                np.mean([getattr(run, name) for run in runs], axis=0),
                {f"seed {seed}": float(getattr(run, name)[0]) for seed, run in enumerate(runs)},
            )
            for name in HEADLINES
        }


def pairs(case: Case, draws: int, seed: int) -> Iterator[tuple[dict[str, Replicated], dict[str, Replicated]]]:
    """Two entries, again and again, each time in another world."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        world, together = World.of(rng), rng.normal(size=case.runs)
        found = []
        for side, (kind, deviation) in enumerate(zip(case.kinds, case.deviations, strict=True)):
            alone = rng.normal(size=case.runs)
            runs = np.sqrt(TOGETHER) * together + np.sqrt(1 - TOGETHER) * alone if case.paired else alone
            numbers = world.entry(rng, shares(kind) + side * case.gap, deviation * runs)
            found.append(numbers if case.paired or not side else {k: _other_seeds(v) for k, v in numbers.items()})
        yield found[0], found[1]


def simulated(case: Case, draws: int, seed: int = 0, processes: int = 2) -> Outcome:
    """What the comparison says in many draws of a case."""
    true = truth(case.kinds[0], case.deviations[0]), truth(case.kinds[1], case.deviations[1], case.gap)
    parts = [(draws // processes + (place < draws % processes), seed * 1000 + place) for place in range(processes)]
    work = partial(_part, case, true)
    if processes == 1:
        found = [work(*part) for part in parts]
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            found = pool.starmap(work, parts)
    rows = np.concatenate(found)  # (draws, headlines, numbers)
    by_headline = {name: rows[:, place] for place, name in enumerate(HEADLINES)}

    def column(first: int, last: int | None = None) -> dict[str, Array]:
        return {name: row[:, first] if last is None else row[:, first:last] for name, row in by_headline.items()}

    return Outcome(column(0), column(1), column(2), column(3, 5), column(5, 7), column(7), true)


def _part(case: Case, true: Sequence[Mapping[str, float]], draws: int, seed: int) -> Array:
    rows = []
    for one, other in pairs(case, draws, seed):
        row = []
        for name in HEADLINES:
            difference = compared(one[name], other[name], ("one", "other"))
            moved = compared(_less(one[name], true[0][name]), _less(other[name], true[1][name]), ("one", "other"))
            told = [spread(number[name], key) for number, key in ((one, "one"), (other, "other"))]
            row.append(
                [
                    moved.p,
                    difference.p,
                    satterthwaite(one[name], other[name], difference.item_error),
                    *(found.low <= truth[name] <= found.high for found, truth in zip(told, true, strict=True)),
                    one[name].estimate,
                    other[name].estimate,
                    difference.item_error,
                ]
            )
        rows.append(row)
    return np.array(rows, dtype=float).reshape(draws, len(HEADLINES), 8)


def satterthwaite(one: Replicated, other: Replicated, item_error: float) -> float:
    """P-value of the test to beat: one variance, of items and of each entry's own runs, and Satterthwaite's degrees."""
    if one.paired_with(other):
        parts = [np.var([one.runs[seed] - other.runs[seed] for seed in one.runs], ddof=1) / len(one.runs)]
        freedom = [len(one.runs) - 1]
    else:
        parts = [np.var(list(number.runs.values()), ddof=1) / len(number.runs) for number in (one, other)]
        freedom = [len(number.runs) - 1 for number in (one, other)]
    variance = item_error**2 + sum(parts)
    if variance == 0:
        return float(one.estimate == other.estimate)
    below = sum(part**2 / df for part, df in zip(parts, freedom, strict=True))
    size = abs(one.estimate - other.estimate) / np.sqrt(variance)
    return float(2 * stdtr(variance**2 / below, -size)) if below > 0 else float(2 * norm.sf(size))


def _less(number: Replicated, truth: float) -> Replicated:
    return Replicated(number.replicates - truth, {seed: value - truth for seed, value in number.runs.items()})


def _other_seeds(number: Replicated) -> Replicated:
    return Replicated(number.replicates, {f"other {seed}": value for seed, value in number.runs.items()})


def _logistic(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))
