"""Rows of weights that were mixed back toward the target's until utility reached a floor (arXiv 2406.09179).

A wrecked model remembers nothing, so it cannot be compared with one that is still of use. Mixed back until both are of
the same use, they can. Which rows these are stands in their column `matching`; the anchors have raw rows alone, which
serve both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from leaderboard.board.schema import matching

PROBE, METRIC = "mixture", "mixing_weight"
"""Names of the one number about the mixing itself: the share of the unlearned weights, 1 where they are not mixed."""

_MATCHED = re.compile(r"uwc\[floor=([0-9.e+-]+)\]", re.ASCII)


def floor_of(name: str) -> float | None:
    """The floor in a value of the column `matching`; None for raw rows and those of another kind."""
    found = _MATCHED.fullmatch(name)
    try:
        floor = float(found[1]) if found else None
    except ValueError:
        return None
    return floor if floor is not None and matching(floor) == name else None


def chosen(floors: Iterable[float], wanted: float) -> float | None:
    """The floor to compare at: the one that is asked for, else the only one that there is."""
    there = set(floors)
    if matching(wanted) in map(matching, there):
        return wanted
    return there.pop() if len(there) == 1 else None
