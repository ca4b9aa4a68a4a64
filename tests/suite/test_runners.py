"""Sweeps that are killed, that run at the same time, or that run on Ray produce the same rows."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
import yaml

from leaderboard.board import schema
from leaderboard.board.schema import RANDOM_CHANGE
from leaderboard.board.store import Board
from suite.storage.stages import StageStore
from tests.support.processes import fresh, run, start
from tests.support.small import SMALL

SWEEP = {
    **SMALL,
    "steps": 2,
    "measure": {"attacks": [{"name": "rtn", "bits": 3}], "limit": 3, "nulls": True},
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


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("spec") / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    return file


@pytest.fixture(scope="module")
def whole(spec) -> Path:
    """A store after one uninterrupted sweep."""
    store = spec.parent / "store"
    fresh("sweep", spec, "--store", store)
    return store


def same(one: Path, other: Path) -> None:
    """The same rows in the same order, in every table."""
    for table in schema.TABLES:
        got, expected = (Board(store / "board").result_rows(table) for store in (one, other))
        assert got.num_rows == expected.num_rows, table
        assert got.equals(expected), table


def test_a_sweep_killed_at_ten_random_instants_ends_in_the_same_rows(spec, whole, tmp_path):
    draw, store = random.Random(0), tmp_path / "store"
    kills = 0
    for _ in range(10):
        process = start("sweep", spec, "--store", store)
        # Its imports are done and its work takes a second or more: it is hit at its start, in stages and between.
        deadline = time.monotonic() + draw.uniform(0, 0.5)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        Board(store / "board").read("measurements")  # readable at every instant
    assert kills >= 1
    run("sweep", spec, "--store", store)
    same(store, whole)
    assert StageStore(store).damaged() == []


def test_two_sweeps_at_once_share_the_work(spec, whole, tmp_path):
    store = tmp_path / "store"
    both = [start("sweep", spec, "--store", store, "--json") for _ in range(2)]
    done = [process.wait(300) for process in both]
    assert [process.returncode for process in done] == [0, 0]
    said = [yaml.safe_load(process.stdout) for process in done]
    same(store, whole)
    computed = [outcome["computed"] for sweep in said for outcome in (*sweep["trials"], *sweep["null_trials"])]
    for kind, expected in (("target", 1), ("retrained", 1), ("unlearn", 4), ("random_change", 2)):
        assert sum(c.get(kind, 0) for c in computed) == expected, f"{kind} was computed once each"
    folders = [path for path in (store / "stages" / "unlearn").iterdir() if path.is_dir()]
    assert len(folders) == 4


@pytest.mark.ray
def test_the_same_specs_give_the_same_rows_on_ray(spec, whole, tmp_path):
    store = tmp_path / "store"
    run("sweep", spec, "--store", store, "--runner", "ray", "--concurrency", "2")
    same(store, whole)
    assert not list((store / "ray").glob("*")), "Ray's own folder is cleared"


def test_an_optuna_search_repeats_and_measures_its_best_on_test(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(SEARCH))
    for name, once in (("one", fresh), ("two", run)):
        once("sweep", file, "--store", tmp_path / name, "--search", "optuna")
    same(tmp_path / "one", tmp_path / "two")
    measured = Board(tmp_path / "one" / "board").read("measurements").to_pylist()
    rows = Board(tmp_path / "one" / "board").read("trials").to_pylist()
    trials, nulls = ({r["trial"] for r in rows if (r["optimizer"] == RANDOM_CHANGE) is null} for null in (False, True))
    assert 2 <= len(trials) <= 4
    assert len(nulls) == 1, "four draws and the best again are five trials: beside the best stands one null trial"
    assert {r["split"] for r in measured if r["trial"] in nulls and r["headline"]} == {"test"}
    seen = {(r["trial"], r["split"]) for r in measured if r["trial"] in trials and r["subject"] == "unlearned"}
    assert sum(split == "dev" for _, split in seen) == len(trials)
    assert sum(split == "test" for _, split in seen) == 1, "a search sees dev; its best is measured on test"


@pytest.mark.ray
def test_an_optuna_search_runs_on_ray(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(SEARCH))
    run("sweep", file, "--store", tmp_path / "store", "--runner", "ray", "--concurrency", "2")
    board = Board(tmp_path / "store" / "board")
    assert {r["status"] for r in board.read("trials").to_pylist()} == {"ok"}
    assert "test" in {r["split"] for r in board.read("measurements").to_pylist()}


def test_a_failed_trial_is_a_row_and_the_next_run_mends_it(spec, tmp_path):
    """A truncated checkpoint fails the trials that need it, with a message that names the file, and nothing else."""
    store = tmp_path / "store"
    run("sweep", spec, "--store", store, "seed=0", "--grid", "seed=0")
    (target,) = (store / "stages" / "target").glob("*/model.safetensors")
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    shutil.rmtree(store / "stages" / "unlearn")
    broken = run("sweep", spec, "--store", store, code=1)
    assert "model.safetensors" in broken.stderr
    assert "cut short" in broken.stderr
    trials = Board(store / "board").read("trials").to_pylist()
    assert {r["status"] for r in trials} == {"ok", "failed"}, "rows that were there stay"
    target.write_bytes(whole)
    run("sweep", spec, "--store", store)
    assert {r["status"] for r in Board(store / "board").read("trials").to_pylist()} == {"ok"}
