"""Reads a peer's file of JSON: an ordinary file of at most half a gigabyte, without keys that are there twice.

A log of 100 MB is read in about four seconds; the whole of it is in memory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from leaderboard.ranking.uncollected import uncollected
from tasks.plain_text import Unreadable, check_characters, check_ordinary, decoded, once
from tasks.task import TaskError

LARGEST = 512 << 20
"""Bytes of a file. Published logs have 1 to 50 MB."""
DIGITS = 1000
"""Digits of a whole number; one that is too large for a float has its entry in the message."""
OTHERS = {
    b"": "empty. Copy it again",
    b"\x1f\x8b": "compressed with gzip. Unpack it first",
    b"PK\x03\x04": "a zip archive. Unpack it first",
    b"version https://git-lfs": "Git LFS's note of where the file is, not the file. Fetch it with `git lfs pull`",
}
"""Files that are often there instead, by how they begin."""
WRITTEN = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""What a log may have for a number that is none. Any other infinite value is a number that no float holds."""


def load(file: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        TaskError: there is none, or it is damaged; names the file.
    """
    try:
        check_ordinary(file)
        with open(file, "rb") as opened:
            content = opened.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise Unreadable(f"larger than {LARGEST >> 20} MiB, the largest that is read")
        text = _text(content)
        del content
        with uncollected():
            found = _JSON.decode(text)
    except Unreadable as error:
        raise TaskError(f"{file}: {error}") from None
    except RecursionError:
        raise TaskError(f"{file}: damaged (lists or objects within each other without end). Copy it again") from None
    except OSError as error:
        raise TaskError(f"{file}: not readable ({error.strerror or error})") from None
    except ValueError as error:
        raise TaskError(f"{file}: damaged ({error}). Copy it again") from None
    if not isinstance(found, dict):
        raise TaskError(f"{file}: not an object of metrics. Name the folder of an evaluation")
    return found


def characters(text: str, where: str) -> None:
    """Check that a key can be stored and shown.

    Raises:
        TaskError: a character of it cannot.
    """
    try:
        check_characters(text)
    except Unreadable as error:
        raise TaskError(f"{where}: {error}") from None


def _text(content: bytes) -> str:
    """A file's bytes as text.

    Raises:
        Unreadable: it is something else.
    """
    for beginning, what in OTHERS.items():
        if content.startswith(beginning) and (beginning or not content.strip()):
            raise Unreadable(what)
    return decoded(content)


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        try:
            once(pairs)
        except Unreadable as error:
            raise Unreadable(f"{error}. Evaluate again") from None
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_constant=WRITTEN.__getitem__, parse_int=_whole)
