"""Rows of the table `steps` that say nothing are named and left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.files import Broken
from leaderboard.board.store import Board
from leaderboard.board.validity import MOST_STEPS
from tests.support.hostile_board import put


def row_of(**changes: Any) -> dict[str, Any]:
    numbers = ("forget_loss", "retain_loss", "gradient_norm", "update_norm", "lr", "seconds")
    counts = ("value_queries", "gradient_queries", "curvature_queries")
    row = {"trial": "t", "request": "all", "step": [1, 2, 3]}
    return row | {name: [0.1, None, 0.3] for name in numbers} | {name: [1, 2, 3] for name in counts} | changes


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no trial": ({"trial": None}, "its trial is missing"),
    "no steps": ({"step": None}, "it has no steps"),
    "a step without number": ({"step": [1, None, 3]}, "its steps are not numbers from 1"),
    "a step 0": ({"step": [0, 1, 2]}, "its steps are not numbers from 1"),
    "no losses": ({"forget_loss": None}, "it has not one forget_loss for each step"),
    "a loss less": ({"retain_loss": [0.1]}, "it has not one retain_loss for each step"),
    "no counts": ({"value_queries": None}, "it has not one value_queries for each step"),
    "many steps": ({"step": [1] * (MOST_STEPS + 1)}, f"more than {MOST_STEPS:,}"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_that_says_nothing_is_left_out_and_named(kind: str, tmp_path: Path):
    changes, reason = ROWS[kind]
    put(tmp_path, "steps", [row_of(), row_of(trial="bad") | changes], "file")
    said: list[Broken] = []
    board = Board(tmp_path / "board", said.append)
    assert [row["trial"] for row in board.read("steps").to_pylist()] == ["t"]
    [broken] = map(str, said)
    assert "1 row left out, it is row 1" in broken and reason in broken


def test_what_need_not_be_there_may_be_missing(tmp_path: Path):
    rows = [row_of(seconds=None), row_of(trial="inf", gradient_norm=[math.inf, math.nan, 1e308])]
    put(tmp_path, "steps", rows, "file")
    said: list[Broken] = []
    assert Board(tmp_path / "board", said.append).read("steps").num_rows == 2 and not said
