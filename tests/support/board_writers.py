"""What the processes do that a test of the store starts: they import it by name."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from leaderboard.board.store import Board, BoardError
from tests.support.board_rows import trial_row

SHARED, OWN = 12, 12
"""Rows that every writer appends, and rows that only one does."""


def append(path: str, writer: int, barrier: Any, results: Any) -> None:
    """Appends the rows that all writers share, in an order of its own, and then its own."""
    board = Board(path)
    barrier.wait()
    shared = list(range(SHARED))[:: 1 if writer % 2 else -1]
    new = [board.append("trials", [trial_row(f"shared {i}", host=str(writer))]).new for i in shared]
    new += [board.append("trials", [trial_row(f"own {writer} {i}")]).new for i in range(OWN)]
    results.put(new)


def die_while_writing(path: str) -> None:
    """Is killed when the bytes are written and the file has no name yet."""
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    Board(path).append("trials", [trial_row("lost")])


def append_with_little_room(path: str, results: Any) -> None:
    """Meets the end of the disk while writing: the kernel cuts the file at 512 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
    try:
        Board(path).append("trials", [trial_row("large")])
    except BoardError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        results.put(str(error))
