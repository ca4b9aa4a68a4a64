"""The mean of a number over seeds, with its uncertainty over examples and over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from tasks.scoring.estimate import Estimate

Z95 = 1.96
"""Half width of a 95 % interval, in standard errors."""
FEWEST_SEEDS = 3
"""Fewest seeds for an interval: with two, Student's t makes it 25 standard errors wide, which is useless."""

LONG = 1e4
"""From here on a number is written with a power of ten."""


@dataclass(frozen=True, slots=True)
class Number:
    """A mean over runs, which differ in their seed.

    Attributes:
        value: null, with the reason, where a run has none. Where it is the worst of several attacks, points or probes,
            the worst is chosen on other items than it is read on (`leaderboard.ranking.comparison`).
        interval: 95 % interval over items and, with two runs or more, over runs; null where the items are not known.
        plain: the mean in which the worst is chosen on the items that it is read on; the same as `value` where the
            items are not known.
        seed_values: the values of single runs, in the order of `Entry.seeds` without the failed ones.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    plain: float | None = None
    seed_values: tuple[float | None, ...] = ()
    reason: str | None = None

    @property
    def margin(self) -> float:
        """Half the width of the interval; 0 where it is not known."""
        return (self.interval[1] - self.interval[0]) / 2 if self.interval else 0.0


def rounded(value: float) -> str:
    """A number with two decimals: `0.87`; with a power of ten where it would be long."""
    return f"{value:.2f}" if abs(value) < LONG else f"{value:.1e}"


def over_seeds(estimates: Mapping[str, Estimate]) -> Number:
    """The mean over runs of estimates by the run's name."""
    if not estimates:
        return Number(None, reason="no seed finished")
    values = [estimate.value for estimate in estimates.values()]
    for seed, estimate in estimates.items():
        if estimate.value is None:
            reason = estimate.reason if len(estimates) == 1 else f"{seed}: {estimate.reason}"
            return Number(None, seed_values=tuple(values), reason=reason)
    mean = plain_mean(values)
    return Number(mean, None, mean, tuple(values))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean, from Student's t with n - 1 degrees of freedom; None with fewer than three values."""
    n = len(values)
    if n < FEWEST_SEEDS:
        return None
    centre = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return centre - half, centre + half


def plain_mean(values: Sequence[float | None]) -> float | None:
    """Arithmetic mean; None if a value is missing or not finite, or there are no values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
