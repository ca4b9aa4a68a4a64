"""A number with its standard error, its sample size and, where it cannot be computed, the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error over examples; a null estimate has the reason instead."""

    value: float | None
    stderr: float | None = None
    n: int = 0
    reason: str | None = None

    @classmethod
    def null(cls, reason: str, n: int = 0) -> Estimate:
        return cls(None, None, n, reason)

    @property
    def known(self) -> bool:
        return self.value is not None

    @property
    def error(self) -> float:
        """The standard error, 0 where it is not defined (a single example)."""
        return self.stderr or 0.0


def mean(values: Sequence[float]) -> Estimate:
    """Arithmetic mean and its standard error s / sqrt(n), s with n - 1; one value has no standard error."""
    n = len(values)
    if n == 0:
        return Estimate.null("no examples")
    if not all(map(math.isfinite, values)):
        return Estimate.null("a value is not finite", n)
    centre = math.fsum(values) / n
    if n == 1:
        return Estimate(centre, None, 1)
    variance = math.fsum((value - centre) ** 2 for value in values) / (n - 1)
    return Estimate(centre, math.sqrt(variance / n), n)
