"""Places labels without overlap: each gets the best free place around its point, or is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CHARACTER, LINE = 6.4, 14.0
"""Width of a character and height of a line of a label in pixels, a little more than they take: fonts differ."""

_PLACES = (
    *((12, 4, "start"), (-12, 4, "end"), (0, 22, "middle"), (0, -13, "middle")),
    *((12, 16, "start"), (-12, 16, "end"), (12, -8, "start"), (-12, -8, "end")),
)
"""Candidate places of a label: offset from its point in pixels, and which end of the text is there."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, half: float) -> Box:
        return cls(x - half, y - half, x + half, y + half)

    def common(self, other: Box) -> float:
        """Area in common, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text at (x, y); `anchor` says which end of it is there, as in SVG."""

    x: float
    y: float
    anchor: str
    text: str

    @property
    def box(self) -> Box:
        width = len(self.text) * CHARACTER
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - 0.8 * LINE, left + width, self.y + 0.2 * LINE)


def place(
    texts: Mapping[str, tuple[str, float, float]], area: Box, occupied: Sequence[Box], lines: Iterable[Box]
) -> dict[str, Label]:
    """A label per key, for the keys that get a place; earlier keys choose first.

    Args:
        texts: per key the text and the point that it belongs to.
        area: labels must stay within it.
        occupied: labels must not cover these boxes.
        lines: labels should avoid these boxes.
    """
    occupied, lines, placed = list(occupied), list(lines), {}
    for key, (text, x, y) in texts.items():
        choices = [Label(x + right, y + down, anchor, text) for right, down, anchor in _PLACES]
        free = [c for c in choices if c.box.within(area) and not any(c.box.common(box) for box in occupied)]
        if free:
            placed[key] = min(free, key=lambda label: sum(label.box.common(line) for line in lines))
            occupied.append(placed[key].box)
    return placed
