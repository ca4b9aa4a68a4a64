"""Entries with a known truth whose numbers vary over seeds of attacks, drawn again and again.

`pairs` draws numbers alone; `crossfitted` draws the answers to items in the world of `simulation`, and the headlines
are computed from them with each seed as on a board.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from leaderboard.ranking.comparison import Cell, Cells, Replicated, Replicates, Units, compared, replicate, spread
from leaderboard.ranking.comparison.resampling import Array
from tests.leaderboard.comparison.simulation import ATTACKS, KEPT, PROBES, USEFUL, World, shares

LEVEL = "attack seeds"
TRUTH = 0.5
REPLICATES = 400


@dataclass(frozen=True)
class Case:
    """Two entries without a difference.

    Attributes:
        runs, seeds: how many each has.
        over_items, over_runs, over_seeds, over_both: deviations of an answer's mean, of runs, of seeds, and of a run
            with a seed.
        same: whether both entries have the same runs and seeds.
        together: share of the variance over seeds that both have in common.
    """

    runs: int
    seeds: int
    over_items: float
    over_runs: float
    over_seeds: float
    over_both: float = 0.0
    same: bool = True
    together: float = 0.5


@dataclass(frozen=True)
class Outcome:
    """Shares of the draws in which a difference was seen that is not there, and in which intervals hold the truth."""

    false: float
    covered: float
    covered_difference: float


def simulated(case: Case, draws: int, seed: int = 0) -> Outcome:
    return _outcome(pairs(case, draws, seed), TRUTH)


def pairs(case: Case, draws: int, seed: int) -> Iterator[tuple[Replicated, Replicated]]:
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        common = rng.normal(size=case.seeds)
        yield _entry(case, rng, common, "one"), _entry(case, rng, common, "one" if case.same else "other")


def _entry(case: Case, rng: np.random.Generator, common: Array, name: str) -> Replicated:
    own = rng.normal(size=case.seeds)
    seeds = np.sqrt(case.together) * common + np.sqrt(1 - case.together) * own if case.same else own
    table = (
        TRUTH
        + case.over_items * rng.normal()
        + case.over_runs * rng.normal(size=(case.runs, 1))
        + case.over_seeds * seeds
        + case.over_both * rng.normal(size=(case.runs, case.seeds))
    )
    replicates = np.concatenate([[0.0], case.over_items * rng.normal(size=REPLICATES)]) + table.mean()
    runs = {f"{name} {run}": float(value) for run, value in enumerate(table.mean(axis=1))}
    levels = {f"{name} {place}": float(value) for place, value in enumerate(table.mean(axis=0))}
    return Replicated(replicates, runs, {LEVEL: levels} if case.seeds > 1 else {})


def crossfitted(deviation: float, runs: int, seeds: int, draws: int, seed: int = 0) -> Outcome:
    """Of robustness, where one attack is strongest, and a seed of an entry's attacks moves all of their shares."""
    return _outcome(_crossfitted(deviation, runs, seeds, draws, seed), TRUTH)


def _crossfitted(
    deviation: float, runs: int, seeds: int, draws: int, seed: int
) -> Iterator[tuple[Replicated, Replicated]]:
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        world = World.of(rng)
        sample = [
            Units.of([(draws.sample, distance) for draws, distance in zip(units.resamplings, of, strict=True)])
            for units, of in ((world.units, world.target - world.retrained), (world.useful_units, world.useful))
        ]
        yield tuple(_answered(world, sample, rng, deviation, runs, seeds) for _ in range(2))


def _answered(
    world: World, sample: list[Units], rng: np.random.Generator, deviation: float, runs: int, seeds: int
) -> Replicated:
    own = world.common + rng.normal(0, 0.25, world.common.shape)
    own_useful = rng.normal(0, 0.2, world.useful.shape)
    moved = rng.normal(0, deviation, seeds)
    found: dict[str, Replicates] = {}
    for run in range(runs):
        useful = KEPT * world.useful + own_useful + rng.normal(0, 0.05, world.useful.shape)
        noise = rng.normal(0, 0.1, world.common.shape)
        by_seed = []
        for shift in moved:
            left = shares("one") + np.where(np.arange(len(ATTACKS)) > 0, shift, 0.0)[:, None]
            by_seed.append(left[:, :, None] * (world.target - world.retrained) + own + noise)
        of = replicate(*_cells(np.mean(by_seed, axis=0), useful, [world.units, world.useful_units]))
        alone = {f"attack seed {place}": replicate(*_cells(one, useful, sample)) for place, one in enumerate(by_seed)}
        found[f"seed {run}"] = replace(of, levels={LEVEL: alone})
    return Replicated.of(found, lambda one: one.robustness)


def _cells(excess: Array, useful: Array, units: list[Units]) -> tuple[Cells, Cells]:
    known = {
        Cell(name, 0, probe): excess[place, probe] for place, name in enumerate(ATTACKS) for probe in range(PROBES)
    }
    return Cells.of(units[0], known), Cells.of(units[1], {Cell("none", 0, p): useful[p] for p in range(USEFUL)})


def _outcome(entries: Iterator[tuple[Replicated, Replicated]], truth: float) -> Outcome:
    rows = []
    for one, other in entries:
        difference = compared(one, other, ("one", "other"))
        told = [spread(number, key, None) for number, key in ((one, "one"), (other, "other"))]
        held = [found.low <= truth <= found.high for found in told]
        rows.append((difference.p < 0.05, np.mean(held), difference.low <= 0 <= difference.high))
    return Outcome(*np.mean(np.array(rows, dtype=float), axis=0))
