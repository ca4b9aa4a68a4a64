"""The utility axis: linear on each side of the board's floor, and compressed below it where that side would take over.

What a board asks for deserves the room. One entry that lost half of its utility would otherwise push all that are
worth comparing into a corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MOST_BELOW = 0.26
"""Most of the axis that utility below the floor gets."""
STRIPE = 0.06
"""Room below the floor when no entry is there, as a share of what is above: enough to see that there is a floor."""
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Distances between ticks that a reader takes in at a glance."""


@dataclass(frozen=True, slots=True)
class UtilityScale:
    """Pixels from `left` to `right` for utilities from `start` to `end`; `border` is where the floor stands."""

    floor: float
    start: float
    end: float
    left: float
    border: float
    right: float

    @classmethod
    def over(cls, utilities: Iterable[float], floor: float, left: float, right: float) -> UtilityScale:
        """A scale on which all these utilities and the floor have a place."""
        lowest = min(utilities, default=floor)
        start = math.floor((lowest - 0.01) * 20) / 20 if lowest < floor else floor - STRIPE * (1.0 - floor)
        start = max(0.0, start)
        end = 1.0 + max(0.004, 0.05 * (1.0 - floor))  # room for the markers at 1
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
