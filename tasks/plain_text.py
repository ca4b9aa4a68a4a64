"""Reads text files that somebody else wrote: ordinary files, of a bounded size, in UTF-8.

Errors are sentences without the file's name; who knows it puts it in front.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHOWN = 60
"""Characters of a value in a message."""
LINE = 200
"""Characters of a word in a message, such as a path."""
DIGITS = 100
"""Characters of the longest number. Python's own limit is 4,300, and a number of two lines is a mistake in any case."""
DEPTH = 32
"""Lists and mappings within each other."""


class Unreadable(ValueError):
    """A file or a text cannot be used. The message is a sentence that says why, and what to do. Internal: who knows
    the file's name makes another error of it."""


class NoSuchFile(Unreadable):
    """There is no such file. Internal, as `Unreadable` is."""


def read_text(file: Path, most: int | None = None) -> str:
    """A file's text. A byte-order mark at its beginning is no part of it.

    Args:
        most: the largest size, in bytes; any by default.

    Raises:
        NoSuchFile: there is none.
        Unreadable: it is no ordinary file, too large, or not UTF-8.
    """
    return decoded(read_bytes(file, most))


def read_bytes(file: Path, most: int | None = None) -> bytes:
    """A file's bytes.

    Raises:
        NoSuchFile: there is none.
        Unreadable: it is no ordinary file, or too large.
    """
    try:
        check_ordinary(file)
        with open(file, "rb") as opened:
            content = opened.read() if most is None else opened.read(most + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise (NoSuchFile if missing else Unreadable)(error.strerror or str(error)) from None
    if most is not None and len(content) > most:
        raise Unreadable(f"larger than {most // 1024} KiB, the largest that is read")
    return content


def check_ordinary(file: Path) -> None:
    """Check that a name is that of an ordinary file: to open a pipe would wait for a writer, a device has no end.

    Raises:
        OSError: there is no such file.
        Unreadable: it is something else.
    """
    try:
        mode = os.stat(file).st_mode
    except ValueError:  # a NUL
        raise Unreadable("no name of a file") from None
    if stat.S_ISDIR(mode):
        raise Unreadable("a folder, and a file is expected")
    if not stat.S_ISREG(mode):
        raise Unreadable("a pipe or a device, and an ordinary file is expected. Write its content into a file")


def decoded(content: bytes) -> str:
    """Bytes as UTF-8 text, without a byte-order mark.

    Raises:
        Unreadable: they are not UTF-8.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:1] == b"\0" or content[1:2] == b"\0":
        raise Unreadable("UTF-16 or UTF-32, and UTF-8 is expected. Save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(
            f"line {line}: the byte 0x{content[error.start]:02x} is not UTF-8. Save the file as UTF-8"
        ) from None


def check_characters(text: str) -> None:
    """Check that a text can be stored: no half of a surrogate pair, which UTF-8 has no bytes for, and no NUL.

    Raises:
        Unreadable: the character, and how it may have come there.
    """
    if "\0" in text:
        raise Unreadable(f"the character U+0000 (NUL) is no text, in {shown(text)}")
    if not text.isascii():
        for character in text:
            if "\ud800" <= character <= "\udfff":
                raise Unreadable(
                    f"the character U+{ord(character):04X} is no text (half of a surrogate pair, or a byte that is not "
                    f"UTF-8), in {shown(text)}"
                )


def json_value(text: str) -> Any:
    """A JSON text as a value: finite numbers, keys once.

    Raises:
        Unreadable: it is none.
    """
    value, end = _json_at(text, _after_blank(text, 0))
    if _after_blank(text, end) < len(text):
        raise Unreadable(f"not JSON: more follows at column {end + 1}")
    return value


def json_array(text: str) -> Iterator[Any]:
    """The values in a JSON text that is an array, one after another, so that an error is one value's.

    Raises:
        Unreadable: it is no array; a value is none that `json_value` reads.
    """
    end = text.index("[") + 1
    if _END.match(text, end):
        return
    while True:
        value, end = _json_at(text, _after_blank(text, end))
        yield value
        end = _after_blank(text, end)
        if text[end : end + 1] == ",":
            end += 1
        elif _END.match(text, end):
            return
        else:
            line = text.count("\n", 0, end) + 1
            raise Unreadable(f"not JSON: a comma, or ] and the end of the file, is expected in line {line}")


def _after_blank(text: str, start: int) -> int:
    blank = _BLANK.match(text, start)
    return blank.end() if blank else start


def _json_at(text: str, start: int) -> tuple[Any, int]:
    try:
        return _JSON.raw_decode(text, start)
    except RecursionError:
        raise Unreadable(_DEEP) from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error}") from None


def check_value(value: Any, depth: int = 0) -> None:
    """Check that the texts in a value can be stored, and that it is not nested deeply.

    Raises:
        Unreadable: what is wrong.
    """
    if isinstance(value, str):
        check_characters(value)
    elif isinstance(value, dict | list):
        if depth > DEPTH:
            raise Unreadable(_DEEP)
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            check_value(one, depth + 1)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys are each there once: the `object_pairs_hook` of a JSON reader.

    Raises:
        Unreadable: a key is there twice, naming it.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Unreadable(f"the key {shown(key)} is there twice")
            seen.add(key)
    return found


def _constant(name: str) -> Any:
    raise Unreadable(f"{name} is no number of JSON, and numbers are finite")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Unreadable(f"{digits[:SHOWN]} is too large for a number")
    return value


def _int(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Unreadable(f"a number of {len(digits)} digits is too large")
    return int(digits)


_JSON = json.JSONDecoder(object_pairs_hook=once, parse_constant=_constant, parse_float=_float, parse_int=_int)
_BLANK = re.compile(r"[ \t\r\n]*")
_END = re.compile(r"\s*]\s*\Z")
_DEEP = f"more than {DEPTH} lists or objects within each other"


def shown(value: Any) -> str:
    """A value as JSON on one line, cut where it is long; for messages."""
    text = json.dumps(_cut(value), ensure_ascii=False, default=str)
    if not text.isprintable():
        text = json.dumps(_cut(value), default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def cut(text: str) -> str:
    """A word that somebody typed, for messages: on one line, and not longer than one."""
    return text if len(text) <= LINE and text.isprintable() else shown(text)


def _cut(value: Any, depth: int = 4) -> Any:
    """As much of a long or deep value as can be shown."""
    if isinstance(value, str):
        return value[: SHOWN + 1]
    if isinstance(value, int) and value.bit_length() > 8 * SHOWN:
        return f"a number of {int(value.bit_length() * 0.30103) + 1} digits"
    if not depth:
        return "..."
    if isinstance(value, list | tuple):
        return [_cut(one, depth - 1) for one in value[:SHOWN]]
    if isinstance(value, dict):
        return {str(_cut(key)): _cut(one, depth - 1) for key, one in list(value.items())[:SHOWN]}
    return value
