"""Retention matching: rows about weights mixed back toward the target's to a utility floor (arXiv 2406.09179).

A wrecked model remembers nothing, so it cannot be compared with one that is still useful. Once both are mixed back to
the same utility, they can be compared. Such rows are marked in their column `matching`; the anchors have only raw rows,
which serve both.
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


def chosen_floor(floors: Iterable[float], wanted: float) -> float | None:
    """The floor to compare at: the wanted one if available, else the only available one, else None."""
    available = set(floors)
    if matching(wanted) in map(matching, available):
        return wanted
    return available.pop() if len(available) == 1 else None
