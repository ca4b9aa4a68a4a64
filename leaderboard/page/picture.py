"""Layout of the picture: utility to the right, forgetting upwards, and the fall under attack.

Forgetting F and robustness R are shares of the same thing (knowledge that is gone), before and after the worst attack,
so both are drawn on one axis: an entry starts at F and falls to R. Up and to the right is good; a short fall is
robust. Only geometry in pixels; the template adds colours and words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from leaderboard.page.placing import Box, Label, place
from leaderboard.page.scale import UtilityScale
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.number import Number
from leaderboard.ranking.rank import Ranking

WIDTH, HEIGHT = 960.0, 560.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 26.0, 20.0, 56.0
MARKER = 8.0
"""Half of a marker's size."""
HEADROOM = 1.08
"""Top of the vertical axis, with space for markers at 1."""
MOST_BARS = 24
"""With more entries than this, only the Pareto front has error bars."""
MOST_LABELS = 16
"""Most labels; the other entries are named on hover, and in the table."""
LONGEST_LABEL = 36
STRIP_WIDTH = 104.0
"""Width of the small picture in a row of the table; it shows the share that is gone from 0 to 1."""

_STAR = "L".join(
    f"{radius * math.sin(turn * math.pi / 5):.2f},{-radius * math.cos(turn * math.pi / 5):.2f}"
    for turn, radius in enumerate((8.8, 4.0) * 5)
)
SHAPES = {
    "second": "M-5.4,-5.4h10.8v10.8h-10.8z",
    "first": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z",
    "compressed": "M0,-7.6L7.6,0L0,7.6L-7.6,0z",
    "zeroth": "M0,-7.2L7,5.2H-7z",
    "hybrid": f"M{_STAR}z",
    "other": "M-2.2,-6.4h4.4v4.2h4.2v4.4h-4.2v4.2h-4.4v-4.2h-4.2v-4.4h4.2z",
}
"""Outline of each grade's marker around (0, 0): shapes differ, so that grades can be told apart without colour."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One entry: a ring at (x, before), a marker at (x, after), the fall between them, error bars, maybe a label."""

    entry: Entry
    grade: str
    x: float
    before: float
    after: float
    fall: str
    bars: str
    label: Label | None


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that the template draws, in pixels; `area` is the inside of the axes."""

    area: Box
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    floor: float
    compressed: bool
    target: tuple[float, float]
    retrained: tuple[float, float]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """The fall of one entry, drawn horizontally, for its row of the table."""

    before: float
    after: float
    fall: str


def grade_of(entry: Entry) -> str:
    """The entry's grade if there is a marker for it, else `other`."""
    return entry.grade if entry.grade in SHAPES else "other"


def picture(ranking: Ranking) -> Picture:
    """The picture of a ranking: every entry that has a score, the best on top."""
    entries = [entry for entry in ranking.entries if entry.reason is None]
    shares = {entry.entry: point for entry in entries if (point := entry.point)}
    area = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    across = UtilityScale.over([utility for _, _, utility in shares.values()], ranking.floor, area.left, area.right)

    def up(gone: float) -> float:
        return area.bottom - gone / HEADROOM * (area.bottom - area.top)

    def mark(entry: Entry, label: Label | None) -> Mark:
        x, before, after = points[entry.entry]
        bars = [
            _bar(x, entry.forgetting, up),
            _bar(x, entry.robustness, up),
            _bar(after, entry.utility, across, flat=True),
        ]
        shown = len(entries) <= MOST_BARS or entry.pareto
        return Mark(
            entry, grade_of(entry), x, before, after, _fall(x, before, after), "".join(bars) if shown else "", label
        )

    points = {name: (across(u), up(f), up(r)) for name, (f, r, u) in shares.items()}
    target, retrained = (across(1.0), up(0.0)), (across(ranking.retrained_utility or 1.0), up(1.0))
    named = sorted(entries, key=lambda entry: (not entry.pareto, entry.rank or len(entries) + 1))[:MOST_LABELS]
    labels = place(
        {entry.entry: (_cut(entry.label), points[entry.entry][0], points[entry.entry][2]) for entry in named},
        area,
        [
            *(Box.around(x, y, MARKER) for x, before, after in points.values() for y in (before, after)),
            *(Box(x - 190, y - 26, x + MARKER, y + MARKER) for x, y in (target, retrained)),  # the anchors' own labels
        ],
        [Box(x - 2, before, x + 2, after) for x, before, after in points.values()],
    )
    return Picture(
        area=area,
        across=tuple(Tick(across(value), f"{value:.2f}") for value in across.ticks()),
        up=tuple(Tick(up(tenths / 10), f"{tenths / 10:.1f}") for tenths in range(0, 11, 2)),
        floor=across.border,
        compressed=across.compressed,
        target=target,
        retrained=retrained,
        marks=tuple(mark(entry, labels.get(entry.entry)) for entry in reversed(entries)),
    )


def strip(entry: Entry) -> Strip | None:
    """The small picture of an entry's row; None where F or R is not known."""
    if entry.forgetting.value is None or entry.robustness.value is None:
        return None

    def along(gone: float) -> float:
        return MARKER + gone * (STRIP_WIDTH - 2 * MARKER)

    before, after = along(entry.forgetting.value), along(entry.robustness.value)
    return Strip(before, after, f"M{before:.1f},10.5L{after:.1f},7V17L{before:.1f},13.5z")


def _fall(x: float, before: float, after: float) -> str:
    """A wedge that widens towards the entry's position after the attack."""
    return f"M{x - 1:.1f},{before:.1f}L{x - 4.5:.1f},{after:.1f}H{x + 4.5:.1f}L{x + 1:.1f},{before:.1f}z"


def _bar(at: float, number: Number, scale: Callable[[float], float], *, flat: bool = False) -> str:
    """The 95 % interval as a line with ends, cut at 0 and 1."""
    if not number.interval or not number.margin:
        return ""
    low, high = (scale(min(1.0, max(0.0, end))) for end in number.interval)
    if flat:
        return f"M{low:.1f},{at:.1f}H{high:.1f}M{low:.1f},{at - 3:.1f}v6M{high:.1f},{at - 3:.1f}v6"
    return f"M{at:.1f},{low:.1f}V{high:.1f}M{at - 3:.1f},{low:.1f}h6M{at - 3:.1f},{high:.1f}h6"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
