"""The utility axis: linear on each side of the board's floor, and compressed below it where that side would be large.

Entries above the floor need most of the space. Otherwise one entry that lost half of its utility would push all
entries worth comparing into a corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MOST_BELOW = 0.26
"""Largest share of the axis for utility below the floor."""
STRIPE = 0.06
"""Space below the floor without entries there, as a share of the space above: enough to make the floor visible."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Allowed distances between ticks."""


@dataclass(frozen=True, slots=True)
class UtilityScale:
    """Pixels from `left` to `right` for utilities from `start` to `end`; `border` is the position of the floor."""

    floor: float
    start: float
    end: float
    left: float
    border: float
    right: float

    @classmethod
    def over(cls, utilities: Iterable[float], floor: float, left: float, right: float) -> UtilityScale:
        """A scale that includes all these utilities and the floor."""
        lowest = min(utilities, default=floor)
        start = math.floor((lowest - 0.01) * 20) / 20 if lowest < floor else floor - STRIPE * (1.0 - floor)
        start = max(0.0, start)
        end = 1.0 + max(0.004, 0.05 * (1.0 - floor))  # space for the markers at 1
        below = min(MOST_BELOW, max(0.0, floor - start) / (end - start))
        return cls(floor, start, end, left, left + below * (right - left), right)

    @property
    def compressed(self) -> bool:
        """Whether a step of utility is shorter below the floor than above it."""
        return (self.border - self.left) * (self.end - self.floor) < 0.99 * (self.right - self.border) * (
            self.floor - self.start
        )

    def __call__(self, utility: float) -> float:
        if utility < self.floor:
            inside = (max(utility, self.start) - self.start) / (self.floor - self.start)
            return self.left + inside * (self.border - self.left)
        return self.border + (utility - self.floor) / (self.end - self.floor) * (self.right - self.border)

    def ticks(self) -> Iterator[float]:
        """Round utilities: up to four below the floor, away from it, and up to seven from there to 1."""
        step = next(step for step in STEPS if (self.floor - self.start) / step <= 3 or step == STEPS[-1])
        yield from (value for value in _multiples(self.start, self.floor, step) if self.border - self(value) > 40)
        step = next(step for step in STEPS if (1 - self.floor) / step <= 6 or step == STEPS[-1])
        yield from _multiples(self.floor, 1.0, step)


def _multiples(start: float, end: float, step: float) -> Iterator[float]:
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return (index * step for index in range(first, last + 1))
