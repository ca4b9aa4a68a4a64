"""Foreign text as it may be shown: what a terminal would obey, or what would hide a text, is written out.

Names, reasons and paths come from files that anybody may have written. An escape sequence in one of them could clear
the screen or set its title, a bidirectional control could turn a line around, and a line break could forge a message.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 200
"""Characters of a text that a table or a message shows."""

_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: escape sequences begin with one of them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the direction of the text around
    "\u2028\u2029"  # end a line or a paragraph
    "\ud800-\udfff]"  # bytes of a file name that are no text: no stream takes them
)


def visible(text: str, keep: str = "") -> str:
    r"""A text with its control characters written out: `\x1b[2J` instead of a cleared screen.

    Args:
        keep: control characters that stay as they are, such as the line breaks of a text of our own.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def shortened(text: str, longest: int = LONGEST, keep: str = "") -> str:
    """The same, with at most so many characters of the text: the middle of a longer one is left out."""
    if len(text) > longest:
        half = (longest - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return visible(text, keep)


def _written_out(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 0x7F else _NAMES[character]


_NAMES = {chr(code): repr(chr(code))[1:-1] for code in range(0x80)}
