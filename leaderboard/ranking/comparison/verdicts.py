"""Which of many entries are better than which, and the smallest difference that a table can tell."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from leaderboard.ranking.comparison.difference import (
    LEVEL,
    ROUNDING,
    Replicated,
    Runs,
    draws_over,
    holm,
    item_error,
    level_draws,
    p_of,
    p_value,
)
from leaderboard.ranking.comparison.resampling import Array

POWER = 0.8
WANTED = 0.05
"""The difference that the words under a table say how many runs it would take to tell."""
MOST_RUNS = 100
CLOSE = 0.002
"""Gaps this close to a 5 % point that was read from a table, as a share of it, are compared exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """Comparisons of every two of some entries, each pair by itself at 5 %.

    Attributes:
        names: the entries, in the order of the rows.
        better: (entries, entries), whether the row's entry is significantly better than the column's.
    """

    names: tuple[str, ...]
    better: NDArray[np.bool_]
    _numbers: tuple[Replicated, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, Replicated]) -> Verdicts:
        """
        Args:
            numbers: the score of each entry; all have two runs or more.
        """
        names, values = tuple(numbers), tuple(numbers.values())
        better = np.zeros((len(names), len(names)), dtype=bool)
        if len(names) > 1:
            _compare_all(values, better)
        return cls(names, better, values)

    def ranks(self) -> dict[str, int]:
        """1 + the entries that are significantly better, and never smaller than the rank of a higher number."""
        ranks: dict[str, int] = {}
        last = 1
        for place in self._by_estimate():
            last = max(last, 1 + int(self.better[:, place].sum()))
            ranks[self.names[place]] = last
        return ranks

    def leader(self) -> str | None:
        """The entry that is better than all others together (Holm); None where none is, or there are no others."""
        if len(self.names) < 2:
            return None
        first, *others = self._by_estimate()
        found = (p_of(self._numbers[first], self._numbers[other]) for other in others)
        p_values = [p for p in found if p is not None]
        return self.names[first] if len(p_values) == len(others) and all(holm(p_values)) else None

    def ties(self) -> dict[str, tuple[str, ...]]:
        """By entry, in the order of the numbers, those after it that cannot be told from it."""
        order = self._by_estimate()
        return {
            self.names[one]: tuple(self.names[other] for other in order[place + 1 :] if not self.better[one, other])
            for place, one in enumerate(order)
        }

    def resolution(self) -> Resolution | None:
        """The smallest difference that a typical pair of these entries can tell; None with fewer than two entries."""
        if len(self.names) < 2:
            return None
        order = self._by_estimate()
        pairs = [(order[i], order[i + 1]) for i in range(len(order) - 1)]
        numbers = [(self._numbers[a], self._numbers[b]) for a, b in pairs]
        runs = int(np.median([min(len(a.runs), len(b.runs)) for a, b in numbers]))
        error = float(np.median([item_error(a, b) for a, b in numbers]))
        run_error = np.median([math.hypot(*(draw.scale for draw in draws_over(a.runs, b.runs))) for a, b in numbers])
        # Further runs leave it as it is, like the error over items.
        level_error = float(np.median([math.hypot(*map(_as_normal, level_draws(a, b))) for a, b in numbers]))
        return Resolution.of(math.hypot(error, level_error), float(run_error) * math.sqrt(runs), runs)

    def _by_estimate(self) -> list[int]:
        return sorted(range(len(self.names)), key=lambda place: (-self._numbers[place].estimate, self.names[place]))


@dataclass(frozen=True, slots=True)
class Resolution:
    """The smallest difference between two entries that is found with 80 % power.

    Attributes:
        runs: runs of each entry.
        more_runs: how many more would resolve 0.05; None where no number of runs would, for want of questions.
    """

    difference: float
    runs: int
    more_runs: int | None

    @classmethod
    def of(cls, item_error: float, deviation: float, runs: int) -> Resolution:
        """
        Args:
            item_error: standard error of a difference over items.
            deviation: between runs, of the difference of two runs.
        """

        def told(k: int) -> float:
            return smallest_told(item_error, deviation, k)

        enough = bisect_left(range(runs, MOST_RUNS + 1), -WANTED, key=lambda k: -told(k))
        return cls(told(runs), runs, enough if runs + enough <= MOST_RUNS else None)


def smallest_told(item_error: float, deviation: float, runs: int) -> float:
    """The difference that is significant with 80 % probability.

    Of entries with the same seeds: the deviation of their differences is itself estimated from so many runs, so the 5 %
    point is another one each time.
    """
    normal = math.hypot(item_error, deviation / math.sqrt(runs))
    if normal == 0:
        return 0.0
    nodes, weights = np.polynomial.legendre.leggauss(64)
    estimated = deviation * np.sqrt(chdtri(runs - 1, (1 - nodes) / 2) / (runs - 1) / runs)
    points = _five_percent_point(np.full(len(nodes), item_error), estimated, runs - 1)

    def power(size: float) -> float:
        return float(weights / 2 @ (ndtr((size - points) / normal) + ndtr((-size - points) / normal)))

    return float(brentq(lambda size: power(size) - POWER, 0.0, float(points.max()) + 10 * normal, xtol=1e-9))


def _compare_all(values: Sequence[Replicated], better: NDArray[np.bool_]) -> None:
    """Fill in `better`: by what the 5 % point is at least and at most, and where that is not enough by `p_value`."""
    estimates = np.array([value.estimate for value in values])
    draws = np.stack([value.replicates[1:] - value.replicates[1:].mean() for value in values])
    covariance = draws @ draws.T / (draws.shape[1] - 1)
    spread = np.diag(covariance)
    alone = [np.array(list(value.runs.values())) for value in values]
    alone_scale = np.array([own.std(ddof=1) / math.sqrt(len(own)) for own in alone])
    alone_df = np.array([len(own) - 1 for own in alone])
    levels = [_Level.of([value.levels.get(name, {}) for value in values]) for name in _levels(values)]
    same_seeds: dict[frozenset[str], list[int]] = defaultdict(list)
    for place, value in enumerate(values):
        same_seeds[frozenset(value.runs)].append(place)
    for seeds, places in same_seeds.items():
        order = sorted(seeds)
        runs = np.array([[values[place].runs[seed] for seed in order] for place in places])
        with_others = np.ones(len(values), dtype=bool)
        with_others[places] = False
        others = np.flatnonzero(with_others)
        for row, one in enumerate(places):
            for group, paired in ((np.array(places), True), (others, False)):
                if not len(group):
                    continue
                gaps = estimates[one] - estimates[group]
                errors = np.sqrt(np.maximum(spread[one] + spread[group] - 2 * covariance[one, group], 0.0))
                if paired:
                    apart = runs[row] - runs
                    apart -= apart.mean(axis=1, keepdims=True)
                    scales = [np.sqrt((apart * apart).sum(axis=1) / ((len(order) - 1) * len(order)))]
                    df = [np.full(len(group), len(order) - 1)]
                else:
                    scales = [np.full(len(group), alone_scale[one]), alone_scale[group]]
                    df = [np.full(len(group), alone_df[one]), alone_df[group]]
                for level in levels:
                    scales, df = [*scales, *level.scales(one, group)], [*df, *level.freedom(one, group)]
                found, open_ = _decided(gaps, errors, scales, df)
                for place in open_:
                    parts = [Runs(float(s[place]), int(d[place])) for s, d in zip(scales, df, strict=True)]
                    found[place] = p_value(float(gaps[place]), float(errors[place]), parts) < LEVEL
                better[one, group] = found


def _levels(values: Sequence[Replicated]) -> list[str]:
    return sorted({level for value in values for level in value.levels})


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """The draws of every two entries over a level beside items and runs.

    Attributes:
        alone, freedom_alone: (entries,), an entry's own deviation over its seeds as that of a mean, and its degrees of
            freedom; 0 and 1 without two seeds.
        group: (entries,), the same number for entries with the same seeds.
        together: (entries, entries), that of the difference of entries with the same seeds.
    """

    alone: Array
    freedom_alone: NDArray[np.int64]
    group: NDArray[np.int64]
    together: Array

    @classmethod
    def of(cls, seeds: Sequence[Mapping[str, float]]) -> _Level:
        known = [len(one) > 1 for one in seeds]
        alone = np.array(
            [draws_over(one, {})[0].scale if many else 0.0 for one, many in zip(seeds, known, strict=True)]
        )
        numbers: dict[frozenset[str], int] = {}
        group = np.array([numbers.setdefault(frozenset(one), len(numbers)) for one in seeds])
        together = np.zeros((len(seeds), len(seeds)))
        for same, number in numbers.items():
            if len(same) > 1:
                places, order = np.flatnonzero(group == number).tolist(), sorted(same)
                by_seed = np.array([[seeds[place][seed] for seed in order] for place in places])
                for place, row in zip(places, by_seed, strict=True):
                    together[place, places] = (row - by_seed).std(axis=1, ddof=1) / math.sqrt(len(order))
        return cls(alone, np.array([max(len(one) - 1, 1) for one in seeds]), group, together)

    def scales(self, one: int, others: NDArray[np.int64]) -> list[Array]:
        """Of an entry and each of the others: of the difference, or of the one and of the other."""
        paired = self.group[one] == self.group[others]
        return [
            np.where(paired, self.together[one, others], self.alone[one]),
            np.where(paired, 0.0, self.alone[others]),
        ]

    def freedom(self, one: int, others: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [np.full(len(others), self.freedom_alone[one]), self.freedom_alone[others]]


def _as_normal(draw: Runs) -> float:
    """The standard error of a normal with the same 5 % point."""
    return draw.scale * float(stdtrit(draw.df, 1 - LEVEL / 2) / ndtri(1 - LEVEL / 2))


def _decided(
    gaps: Array, errors: Array, scales: Sequence[Array], df: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which gaps are significant, and the places of those that are left open.

    The 5 % point of a sum is at least that of each of its parts, and at most the sum of the parts' points at a share of
    the level each. A sum of items and paired runs has a point that is read from a table, but for those close to it.
    """
    parts = 1 + len(scales)
    least, most = ndtri(1 - LEVEL / 2) * errors, ndtri(1 - LEVEL / 2 / parts) * errors
    for scale, freedom in zip(scales, df, strict=True):
        least = np.maximum(least, _t_points(freedom, LEVEL) * scale)
        most = most + _t_points(freedom, LEVEL / parts) * scale
    if len(scales) == 1 and len(gaps):
        point = _five_percent_point(errors, scales[0], int(df[0][0]))
        least, most = np.maximum(least, point * (1 - CLOSE)), np.minimum(most, point * (1 + CLOSE))
    real = gaps >= ROUNDING
    return real & (gaps > most), np.flatnonzero(real & (gaps >= least) & (gaps <= most))


def _t_points(df: NDArray[np.int64], level: float) -> Array:
    """Two-sided points of Student's t, each computed once."""
    return stdtrit(np.arange(df.max(initial=1) + 1), 1 - level / 2)[df]


def _five_percent_point(errors: Array, scales: Array, df: int) -> Array:
    """The 5 % point of |N(0, error^2) + scale t(df)|, to a share of `CLOSE`."""
    angles, points = _table(df)
    return np.interp(np.arctan2(scales, errors), angles, points) * np.hypot(errors, scales)


@cache
def _table(df: int) -> tuple[Array, Array]:
    """The 5 % points of cos(angle) N(0, 1) + sin(angle) t(df), by angle."""
    angles = np.linspace(0, math.pi / 2, 129)
    return angles, np.array([_point(math.cos(angle), Runs(math.sin(angle), df)) for angle in angles])


def _point(error: float, draw: Runs) -> float:
    far = error * float(ndtri(1 - LEVEL / 4)) + draw.scale * float(stdtrit(draw.df, 1 - LEVEL / 4))
    return float(brentq(lambda size: p_value(size, error, [draw]) - LEVEL, 0.0, far, xtol=1e-7))
