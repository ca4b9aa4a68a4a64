"""Which of many entries are better than which, and the smallest difference that a table can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

from leaderboard.ranking.comparison.difference import (
    LEVEL,
    Replicated,
    Runs,
    compared,
    holm,
    p_value,
    run_draws,
)

POWER = 0.8
WANTED = 0.05
"""The difference that the words under a table say how many runs it would take to tell."""
MOST_RUNS = 100


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
        p_values = [self._p(first, other) for other in others]
        return self.names[first] if all(holm(p_values)) else None

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
        found = [compared(self._numbers[a], self._numbers[b], (self.names[a], self.names[b])) for a, b in pairs]
        runs = int(np.median([min(len(self._numbers[a].runs), len(self._numbers[b].runs)) for a, b in pairs]))
        item_error = float(np.median([one.item_error for one in found]))
        deviation = float(np.median([one.run_error or 0.0 for one in found])) * math.sqrt(runs)
        return Resolution.of(item_error, deviation, runs)

    def _by_estimate(self) -> list[int]:
        return sorted(range(len(self.names)), key=lambda place: (-self._numbers[place].estimate, self.names[place]))

    def _p(self, one: int, other: int) -> float:
        p = compared(self._numbers[one], self._numbers[other], (self.names[one], self.names[other])).p
        return 1.0 if p is None else p


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
        told = {k: smallest_told(item_error, deviation, k) for k in range(runs, MOST_RUNS + 1)}
        return cls(told[runs], runs, next((k - runs for k, difference in told.items() if difference <= WANTED), None))


def smallest_told(item_error: float, deviation: float, runs: int) -> float:
    """The difference that is significant with 80 % probability."""
    draw = Runs(deviation / math.sqrt(runs), runs - 1)
    normal = math.hypot(item_error, draw.scale)
    if normal == 0:
        return 0.0
    far = item_error * float(ndtri(1 - LEVEL / 4)) + draw.scale * float(stdtrit(draw.df, 1 - LEVEL / 4))
    critical = brentq(lambda size: p_value(size, item_error, [draw]) - LEVEL, 0.0, far)
    return float(critical + ndtri(POWER) * normal)


def _compare_all(values: Sequence[Replicated], better: NDArray[np.bool_]) -> None:
    """Fill in `better`. Most pairs are decided by bounds on the 5 % point; the others by `p_value`."""
    estimates = np.array([value.estimate for value in values])
    draws = np.stack([value.replicates[1:] - value.replicates[1:].mean() for value in values])
    covariance = draws @ draws.T / (draws.shape[1] - 1)
    spread = np.diag(covariance)
    z, far_z = ndtri(1 - LEVEL / 2), ndtri(1 - LEVEL / 4)
    for one, value in enumerate(values):
        gaps = estimates[one] - estimates
        errors = np.sqrt(np.maximum(spread[one] + spread - 2 * covariance[one], 0.0))
        possible = np.flatnonzero((gaps > 0) & (gaps >= z * errors))
        for other in possible:
            runs = run_draws(value, values[other])
            if len(runs) == 1:
                draw = runs[0]
                if gaps[other] < draw.scale * stdtrit(draw.df, 1 - LEVEL / 2):
                    continue
                if gaps[other] >= far_z * errors[other] + draw.scale * stdtrit(draw.df, 1 - LEVEL / 4):
                    better[one, other] = True
                    continue
            better[one, other] = p_value(float(gaps[other]), float(errors[other]), runs) < LEVEL
