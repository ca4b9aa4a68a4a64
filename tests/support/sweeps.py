"""A small sweep and a small search, and how the stores that they leave are compared."""

from __future__ import annotations

from pathlib import Path

from leaderboard.board.store import Board
from tests.support.small import SMALL

SWEEP = {
    **SMALL,
    "steps": 2,
    "measure": {"attacks": [{"name": "rtn", "bits": 3}], "limit": 3},
    "search": {"grid": {"optimizer.name": ["adam", "hybrid"], "seed": [0, 1]}},
}
SEARCH = {
    **SMALL,
    "steps": 2,
    "measure": {"attacks": [], "limit": 3},
    "search": {
        "space": {
            "optimizer.name": ["adam", "hybrid"],
            "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "optimizer.zo.samples": [1, 2],
        },
        "trials": 4,
    },
}


def same(one: Path, other: Path) -> None:
    """The same rows in the same order, in every table."""
    for table in ("trials", "measurements", "samples"):
        got, expected = (Board(store / "board").result_rows(table) for store in (one, other))
        assert got.num_rows == expected.num_rows, table
        assert got.equals(expected), table
