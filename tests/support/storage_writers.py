"""What the processes do that a test of storage starts. Beside the tests, because they import it by name."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leaderboard.storage import FolderStorage

NAMES = [f"folder/{number}" for number in range(150)]
BYTES = 20_000
"""More than one write, so that half a file could be seen."""


def content(writer: str, name: str) -> bytes:
    """Bytes that say who wrote them, and prove that they are whole."""
    text = f"{writer} {name} ".encode()
    text += text * (BYTES // len(text))
    return hashlib.sha256(text).hexdigest().encode() + text


def author(found: bytes) -> str:
    """Who wrote the bytes; fails where they are not whole."""
    assert hashlib.sha256(found[64:]).hexdigest().encode() == found[:64]
    return found[64:].split()[0].decode()


def read(storage: FolderStorage, name: str) -> bytes:
    with storage.open(name) as file:
        return file.read()


def race(root: str, writer: str, barrier: Any, results: Any) -> None:
    """Puts every name at the same time as the others, and tells per name whether it won and whose bytes are there."""
    storage, found = FolderStorage(Path(root)), {}
    barrier.wait()
    for name in NAMES:
        won = storage.put_if_absent(name, content(writer, name))
        found[name] = (won, author(read(storage, name)))
    results.put((writer, found))


def write_for_ever(root: str, writer: str) -> None:
    """Puts every name, again and again, until it is killed."""
    storage = FolderStorage(Path(root))
    while True:
        for name in NAMES:
            storage.put_if_absent(name, content(writer, name))


def die_at(root: str, call: str, when: str) -> None:
    """Is killed right before or after the first call of a function of `os` that a put makes."""
    original: Callable[..., Any] = getattr(os, call)

    def dying(*args: Any, **options: Any) -> Any:
        if when == "after":
            original(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, dying)
    FolderStorage(Path(root)).put_if_absent("folder/name", content("dead", "name"))


if __name__ == "__main__":
    die_at(*sys.argv[1:])
