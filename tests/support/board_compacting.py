"""What the processes do that the tests of compaction start, and boards for them: they import it by name."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leaderboard.board import schema
from leaderboard.board.store import Board
from tests.support.board_rows import Row, item_rows, measurement_row, step_row, trial_row

POINTS = ("open", "link", "unlink", "fsync")
"""Calls of the system by which a file is written, gets its name, is deleted, and is synced."""


def sample_row(evaluation: str, item: int, **changes: Any) -> Row:
    row = {
        "samples": evaluation,
        "probe": "forget_qa",
        "item": str(item),
        "reference": "Quorn",
        "token_logprobs": [-0.5, None, float("nan")],
        "token_correct": [True, False, True],
        "scalars": [("loss", 1.5)],
        "sampled": ["a", None],
    }
    return row | changes


def fill(path: Path, files: int = 6) -> None:
    """A board with so many files in each table."""
    board = Board(path)
    for number in range(files):
        measured = [measurement_row(f"t{number}", "target", 0.5, n=2 + number)]
        board.append("trials", [trial_row(f"e{number}", seed) for seed in (1, 2)])
        board.append("measurements", measured)
        board.append("items", item_rows(measured))
        board.append("steps", [step_row(f"t{number}")])
        board.append("samples", [sample_row(f"s{number}", item) for item in range(3)], f"s{number}")


def compact_and_die(path: str, call: str, nth: int, before: bool) -> None:
    """Is killed before or after the nth call of the system of this name."""
    plain: Callable[..., Any] = getattr(os, call)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*args, **options)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, call, counted)
    Board(path).compact()


def compact_forever(path: str, files: int) -> None:
    """Fills a board again and again, as trials do that are run again, and compacts it."""
    while True:
        Board(path).compact()
        fill(Path(path), files)


def write_for_a_while(path: str, writer: int, seconds: float) -> None:
    """Appends rows of its own, and rows that are there already."""
    board, end, number = Board(path), time.monotonic() + seconds, 0
    rng = random.Random(writer)
    while time.monotonic() < end:
        board.append("trials", [trial_row(f"own {writer} {number}")])
        board.append("trials", [trial_row(f"e{rng.randrange(6)}", seed) for seed in (1, 2)])
        number += 1


def compact_for_a_while(path: str, barrier: Any, seconds: float) -> None:
    barrier.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        Board(path).compact()


def compact_once(path: str, barrier: Any) -> None:
    barrier.wait()
    Board(path).compact()


def shown(path: Path) -> dict[str, list[Row]]:
    """All that reading gives, to the last bit: a float's repr tells it from every other one, and NaN is itself."""
    board = Board(path, lambda _: None)
    return {table: repr(board.read(table).to_pylist()) for table in schema.TABLES}


def left_out(path: Path) -> list[str]:
    return sorted(map(str, Board(path).broken()))


def names(path: Path, table: str = "trials") -> list[str]:
    return sorted(file.name for file in (path / table).iterdir() if not file.name.startswith("."))


def counts(path: Path) -> dict[str, tuple[int, int]]:
    return {one.table: (one.before, one.after) for one in Board(path, lambda _: None).compact()}
