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
    """A mean over seeds.

    Attributes:
        value: null, with the reason, where a seed has none.
        over_examples: standard error over examples: the mean of the seeds' errors. All seeds have the same examples, so
            more seeds do not make this error smaller.
        seed_values: the values of single seeds, in the order of `Entry.seeds` without the failed ones.
        seed_interval: 95 % interval over seeds (Student's t); null with fewer than three seeds.
    """

    value: float | None
    over_examples: float | None = None
    seed_values: tuple[float | None, ...] = ()
    seed_interval: tuple[float, float] | None = None
    reason: str | None = None

    @property
    def margin(self) -> float:
        """Half of the 95 % interval over examples; 0 where no error is known."""
        return Z95 * (self.over_examples or 0.0)


def rounded(value: float) -> str:
    """A number with two decimals: `0.87`; with a power of ten where it would be long."""
    return f"{value:.2f}" if abs(value) < LONG else f"{value:.1e}"


def over_seeds(estimates: Mapping[str, Estimate]) -> Number:
    """The mean over seeds of estimates by the seed's name."""
    if not estimates:
        return Number(None, reason="no seed finished")
    values = [estimate.value for estimate in estimates.values()]
    for seed, estimate in estimates.items():
        if estimate.value is None:
            reason = estimate.reason if len(estimates) == 1 else f"{seed}: {estimate.reason}"
            return Number(None, seed_values=tuple(values), reason=reason)
    errors = [estimate.stderr for estimate in estimates.values() if estimate.stderr is not None]
    return Number(plain_mean(values), plain_mean(errors), tuple(values), interval(values))


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
