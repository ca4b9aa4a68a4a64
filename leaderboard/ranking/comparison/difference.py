"""How far a number may be off over items, over runs and over further levels of seeds, and whether two entries differ.

Items enter by the replicates, in which all entries answer the same drawn items. Runs enter by each entry's own
deviation between its runs, as a draw of Student's t: s t(K - 1) / sqrt(K) (Behrens-Fisher). Entries with the same seeds
are paired by seed, since runs of one seed share their batches: then s is the deviation of the differences. Further
levels, such as the seeds of attacks, enter in the same way, each by a draw of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from leaderboard.ranking.comparison.crossfit import Replicates
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.comparison.tails import tail

LEVEL = 0.05
"""Share of pairs without a difference that may be called different."""
ROUNDING = 1e-9
"""A smaller difference is none: equal numbers that were summed in another order have equal errors of this kind."""


@dataclass(frozen=True, slots=True, eq=False)
class Replicated:
    """A number of an entry.

    Attributes:
        replicates: (1 + replicates,) means over the runs, the estimate first.
        runs: the estimate of each run, by its seed.
        levels: by further level the estimate with each of its seeds alone, as means over the runs; of two seeds or
            more.
    """

    replicates: Array
    runs: Mapping[str, float]
    levels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Mapping[str, Replicates], number: Callable[[Replicates], Array]) -> Replicated:
        """A number of an entry.

        Args:
            runs: the entry's headlines by run.
            number: the number of a run.
        """
        levels = {}
        for level in sorted(set.intersection(*(set(run.levels) for run in runs.values()))):
            of_runs = [run.levels[level] for run in runs.values()]
            common = [seed for seed in of_runs[0] if all(seed in seeds for seeds in of_runs)]
            if len(common) > 1:
                levels[level] = {seed: float(np.mean([number(seeds[seed])[0] for seeds in of_runs])) for seed in common}
        return replace(cls.mean_of({name: number(run) for name, run in runs.items()}), levels=levels)

    @classmethod
    def mean_of(cls, runs: Mapping[str, Array]) -> Replicated:
        """
        Args:
            runs: the number in every replicate, the estimate first, of each run by what it is paired by.
        """
        mean = sum(runs.values(), np.zeros(())) / len(runs)
        return cls(mean, {name: float(found[0]) for name, found in runs.items()})

    @property
    def estimate(self) -> float:
        return float(self.replicates[0])

    def paired_with(self, other: Replicated) -> bool:
        """Whether both entries have the same seeds."""
        return self.runs.keys() == other.runs.keys()


@dataclass(frozen=True, slots=True)
class Spread:
    """A number with its 95 % interval, over items, with two runs or more over runs, and over further levels."""

    estimate: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How much larger a number is in one entry than in another.

    Attributes:
        low, high: 95 % interval over items, runs and further levels; without runs where an entry has one.
        over_items: 95 % interval over items alone: what these very runs say with other questions.
        p: probability of a difference this large where there is none; null where an entry has one run.
        per_seed: differences of the runs with one seed; empty unless both entries have the same seeds.
        item_error, run_error: standard errors over items, and over runs and further levels together.
    """

    estimate: float
    low: float
    high: float
    p: float | None
    per_seed: Mapping[str, float]
    item_error: float
    run_error: float | None
    over_items: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Runs:
    """One draw over runs or over seeds of a further level: scale times Student's t."""

    scale: float
    df: int


def spread(number: Replicated, key: str, bounds: tuple[float, float] | None = (0.0, 1.0)) -> Spread:
    """A number's interval.

    Args:
        key: names the entry; its draws over runs follow from it.
        bounds: what the number can be.
    """
    draws = _named_draws(number, None, (key, ""))
    low, high = _interval(number.replicates, draws, bounds)
    return Spread(number.estimate, low, high, len(number.runs))


def compared(one: Replicated, other: Replicated, keys: tuple[str, str], limit: float | None = 1.0) -> Difference:
    """How much larger a number is in `one` than in `other`.

    Args:
        keys: name the two entries.
        limit: the largest difference that there can be, upward and downward.
    """
    replicates = one.replicates - other.replicates
    named = _named_draws(one, other, keys)
    draws = [draw for _, draw in named]
    per_seed = _apart(one.runs, other.runs) if one.paired_with(other) else {}
    bounds = (-limit, limit) if limit is not None else None
    low, high = _interval(replicates, named, bounds)
    error = item_error(one, other)
    known = min(len(one.runs), len(other.runs)) > 1
    return Difference(
        float(replicates[0]),
        low,
        high,
        p_value(float(replicates[0]), error, draws) if known else None,
        per_seed,
        error,
        math.hypot(*(draw.scale for draw in draws)) if known else None,
        _interval(replicates, [], bounds),
    )


def item_error(one: Replicated, other: Replicated) -> float:
    """The standard error of a difference over items."""
    return float((one.replicates[1:] - other.replicates[1:]).std(ddof=1))


def p_of(one: Replicated, other: Replicated) -> float | None:
    """As `Difference.p`, without the rest."""
    if min(len(one.runs), len(other.runs)) < 2:
        return None
    return p_value(one.estimate - other.estimate, item_error(one, other), run_draws(one, other))


def p_value(estimate: float, error: float, draws: Sequence[Runs]) -> float:
    """P(|N(0, error^2) + sum of scale t(df)| >= |estimate|), by quadrature: small values are not cut off."""
    size = abs(estimate)
    if size < ROUNDING:
        return 1.0
    draws = [draw for draw in draws if draw.scale > 0]
    if not draws:
        return float(2 * ndtr(-size / error)) if error > 0 else float(estimate == 0)
    if len(draws) > 2:  # nodes of that many would be too many
        return tail(size, error, [draw.scale for draw in draws], [draw.df for draw in draws])
    # The widest of the terms is integrated exactly, over the nodes of the others.
    widest = max(draws, key=lambda draw: draw.scale)
    exact = None if error > widest.scale else widest
    centres, weights = np.array([0.0]), np.array([1.0])
    if exact and error > 0:
        nodes, shares = _normal_nodes()
        centres, weights = error * nodes, shares
    for draw in draws:
        if draw is not exact:
            nodes, shares = _t_nodes(draw.df)
            centres = np.add.outer(centres, draw.scale * nodes).ravel()
            weights = np.multiply.outer(weights, shares).ravel()

    def further(beyond: Array) -> Array:
        return stdtr(exact.df, -beyond / exact.scale) if exact else ndtr(-beyond / error)

    return min(1.0, float(weights @ (further(size - centres) + further(size + centres))))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several comparisons hold together (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    held = [False] * len(p_values)
    for done, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - done):
            break
        held[index] = True
    return held


def run_draws(one: Replicated, other: Replicated) -> list[Runs]:
    """How a difference varies over runs and over further levels.

    Of each it is one draw where both have the same seeds, else one for each entry. An entry with one run or seed has
    none.
    """
    return [draw for _, draw in _named_draws(one, other)]


def level_draws(one: Replicated, other: Replicated) -> list[Runs]:
    """How a difference varies over the levels beside items and runs."""
    return run_draws(one, other)[len(draws_over(one.runs, other.runs)) :]


Seeds = Mapping[str, float]
"""A number by the seeds of a level: of runs, attacks or anchors."""


def draws_over(one: Seeds, other: Seeds) -> list[Runs]:
    """How a difference varies over one level."""
    return [draw for _, draw in _draws(one, other, ("", ""))]


def _named_draws(one: Replicated, other: Replicated | None, keys: tuple[str, str] = ("", "")) -> list[tuple[str, Runs]]:
    """The draws of a difference, or of a number, each with a name that is made of the entries' names."""
    levels = other.levels if other else {}
    draws = _draws(one.runs, other.runs if other else {}, keys)
    for level in sorted({*one.levels, *levels}):
        over_seeds = _draws(one.levels.get(level, {}), levels.get(level, {}), keys)
        draws += [(f"{name}\n\n{level}", draw) for name, draw in over_seeds]
    return draws


def _draws(one: Seeds, other: Seeds, keys: tuple[str, str]) -> list[tuple[str, Runs]]:
    if one.keys() == other.keys():
        return [("\n".join(sorted(keys)), _runs_of(list(_apart(one, other).values())))] if len(one) > 1 else []
    sides = zip(keys, (one, other), strict=True)
    return [(key, _runs_of(list(seeds.values()))) for key, seeds in sides if len(seeds) > 1]


def _apart(one: Seeds, other: Seeds) -> dict[str, float]:
    return {seed: one[seed] - other[seed] for seed in one}


def _runs_of(values: Sequence[float]) -> Runs:
    n = len(values)  # a few: NumPy would take twenty times as long
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Runs(math.sqrt(variance / n), n - 1)


def _interval(
    replicates: Array, draws: Sequence[tuple[str, Runs]], bounds: tuple[float, float] | None
) -> tuple[float, float]:
    drawn = replicates[1:] - replicates[1:].mean()
    for name, draw in draws:
        drawn = drawn + draw.scale * _t_draws(len(drawn), draw.df, name)
    low, high = replicates[0] + _quantiles(drawn)
    low, high = float(min(low, replicates[0])), float(max(high, replicates[0]))
    least, most = bounds or (-math.inf, math.inf)
    return max(low, least), min(high, most)


def _quantiles(values: Array) -> Array:
    """The 2.5 % and the 97.5 % quantile, as `numpy.quantile` has them: without its overhead, of which a board has much.

    Reorders the values.
    """
    below, above, share, places = _places(len(values))
    values.partition(places)
    return values[below] + share * (values[above] - values[below])


@cache
def _places(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array, list[int]]:
    exact = (size - 1) * np.array([LEVEL / 2, 1 - LEVEL / 2])
    below = np.floor(exact).astype(int)
    above = np.minimum(below + 1, size - 1)
    return below, above, exact - below, sorted({*below.tolist(), *above.tolist()})


@lru_cache(256)
def _t_draws(size: int, df: int, name: str) -> Array:
    """Quantiles of Student's t in an order that depends on the name alone."""
    key = int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:16], "little")
    return _t_quantiles(size, df)[np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")]


@cache
def _t_quantiles(size: int, df: int) -> Array:
    return stdtrit(df, (np.arange(size) + 0.5) / size)


@cache
def _normal_nodes(nodes: int = 96) -> tuple[Array, Array]:
    """Nodes and weights for means over a standard normal."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    x, w = 8.5 * x, 8.5 * w
    return x, w * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


@cache
def _t_nodes(df: int) -> tuple[Array, Array]:
    """Nodes and weights for means over Student's t: Gauss-Legendre over the quantiles."""
    u, w = np.polynomial.legendre.leggauss(384 if df == 1 else 96)  # its tails are the heaviest
    u, w = (u + 1) / 2, w / 2
    # Denser at both ends, where the quantiles grow: u = 3v^2 - 2v^3 has slope 6v(1 - v).
    return stdtrit(df, 3 * u**2 - 2 * u**3), w * 6 * u * (1 - u)
