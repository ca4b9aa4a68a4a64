"""Names of rows about weights on the way from the target to the unlearned model (retention matching, arXiv 2406.09179).

A wrecked model remembers nothing, so it cannot be compared with one that is still useful. Once both are mixed back to
the same utility, they can be compared. Two kinds of rows say how much is left there:

* A curve: rows about several shares of the unlearned weights (`mixed[share=0.75]`), which are read where utility is at
  the floor on the questions that are ranked (`leaderboard.ranking.mixing_curve`). A row of its own says at which floor
  (`curve[floor=0.9]`).
* One share, as earlier versions measured: the largest that kept utility at the floor on dev (`uwc[floor=0.9]`).

The anchors have only raw rows, which serve all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from leaderboard.board.schema import matching

PROBE, METRIC = "mixture", "mixing_weight"
"""Names of the one number about the mixing itself: the share of the unlearned weights, 1 where they are not mixed."""

CURVE, SHARE = "curve", "share"
"""The two kinds of matched numbers: read along a curve on these questions, or of one share that was found on dev."""

_SHARE = re.compile(r"uwc\[floor=([0-9.e+-]+)\]", re.ASCII)
_CURVE = re.compile(r"curve\[floor=([0-9.e+-]+)\]", re.ASCII)
_MIXED = re.compile(r"mixed\[share=([0-9.e+-]+)\]", re.ASCII)


def curve_name(floor: float) -> str:
    """`matching` of the row that says that a trial's curve was measured to be read at a floor of utility."""
    return f"curve[floor={floor:g}]"


def mixed_name(share: float) -> str:
    """`matching` of rows about weights with this share of the unlearned model's, and otherwise the target's."""
    return f"mixed[share={share:g}]"


def floor_of(name: str) -> float | None:
    """The floor in a value of the column `matching`, of either kind; None for other rows."""
    floor = _number(_SHARE, name)
    if floor is not None:
        return floor if matching(floor) == name else None
    floor = _number(_CURVE, name)
    return floor if floor is not None and 0 < floor <= 1 and curve_name(floor) == name else None


def of_curve(name: str) -> bool:
    """Whether a row says that a curve was measured. Such a row is about the questions of its split."""
    return _CURVE.fullmatch(name) is not None


def share_of(name: str) -> float | None:
    """The share of the unlearned weights in a value of the column `matching`, between 0 and 1; None for other rows."""
    share = _number(_MIXED, name)
    return share if share is not None and 0 < share < 1 and mixed_name(share) == name else None


def chosen_floor(floors: Iterable[float], wanted: float) -> float | None:
    """The floor to compare at: the wanted one if available, else the only available one, else None."""
    available = set(floors)
    if matching(wanted) in map(matching, available):
        return wanted
    return available.pop() if len(available) == 1 else None


def matched_on(kinds: Iterable[str], split: str) -> str:
    """On which questions utility is at the floor: `test`; `dev` for single shares."""
    found = set(kinds)
    if found == {SHARE}:
        return "dev"
    return f"{split} (single shares: on dev)" if SHARE in found else split


def _number(pattern: re.Pattern[str], name: str) -> float | None:
    found = pattern.fullmatch(name)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None
