"""Sweeps and searches on Ray bring the rows that they bring in one process."""

from __future__ import annotations

import pytest
import yaml

from leaderboard.board.store import Board
from tests.support.processes import run
from tests.support.sweeps import SEARCH, SWEEP, same

pytestmark = pytest.mark.ray


def test_the_same_specs_give_the_same_rows_on_ray(tmp_path):
    spec, store = tmp_path / "sweep.yaml", tmp_path / "store"
    spec.write_text(yaml.safe_dump(SWEEP))
    run("sweep", spec, "--store", tmp_path / "whole")
    run("sweep", spec, "--store", store, "--runner", "ray", "--concurrency", "2")
    same(store, tmp_path / "whole")
    assert not list((store / "ray").glob("*")), "Ray's own folder is cleared"


def test_an_optuna_search_runs_on_ray(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(SEARCH))
    run("sweep", file, "--store", tmp_path / "store", "--runner", "ray", "--concurrency", "2")
    board = Board(tmp_path / "store" / "board")
    assert {r["status"] for r in board.read("trials").to_pylist()} == {"ok"}
    assert "test" in {r["split"] for r in board.read("measurements").to_pylist()}
