"""Sweeps that are killed, that run at the same time, or that run on Ray produce the same rows."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from leaderboard.board.store import Board
from suite.storage.stages import StageStore
from tests.support.small import SMALL

MEASURE = {"attacks": [{"name": "rtn", "bits": 3}], "limit": 3}
SWEEP = {
    **SMALL,
    "steps": 2,
    "measure": MEASURE,
    "search": {"grid": {"optimizer.name": ["adam", "hybrid"], "seed": [0, 1]}},
}
TABLES = ("trials", "measurements", "samples")


@pytest.fixture
def spec(tmp_path) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    return file


def command(spec: Path, store: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from suite.cli import main; main()",
        "sweep",
        str(spec),
        "--store",
        str(store),
        *more,
    ]


def rows(store: Path) -> dict:
    return {table: Board(store / "board").result_rows(table) for table in TABLES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store after one uninterrupted sweep."""
    folder = tmp_path_factory.mktemp("whole")
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(SWEEP))
    subprocess.run(command(file, folder / "store"), check=True, capture_output=True)
    return folder / "store"


def same(one: Path, other: Path) -> None:
    for table, expected in rows(other).items():
        got = rows(one)[table]
        assert got.num_rows == expected.num_rows, table
        assert got.equals(expected), table


def test_a_sweep_killed_at_ten_random_instants_ends_in_the_same_rows(spec, whole, tmp_path):
    draw, store = random.Random(0), tmp_path / "store"
    kills = 0
    for _ in range(10):
        process = subprocess.Popen(
            command(spec, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        # After the imports (about 5 s here) there are a few seconds of work; some kills hit before, some after.
        deadline = time.monotonic() + draw.uniform(2, 9)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        Board(store / "board").read("measurements")  # readable at every instant
    assert kills >= 1
    subprocess.run(command(spec, store), check=True, capture_output=True)
    same(store, whole)
    assert StageStore(store).damaged() == []


def test_two_sweeps_at_once_share_the_work(spec, whole, tmp_path):
    store = tmp_path / "store"
    sweeps = [subprocess.Popen(command(spec, store, "--json"), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [yaml.safe_load(process.communicate(timeout=300)[0]) for process in sweeps]
    assert [process.returncode for process in sweeps] == [0, 0]
    same(store, whole)
    computed = [outcome["computed"] for sweep in outputs for outcome in sweep["trials"]]
    for kind, expected in (("target", 1), ("retrained", 1), ("unlearn", 4)):
        assert sum(c.get(kind, 0) for c in computed) == expected, f"{kind} was computed once each"
    folders = [path for path in (store / "stages" / "unlearn").iterdir() if path.is_dir()]
    assert len(folders) == 4


@pytest.mark.ray
def test_the_same_specs_give_the_same_rows_on_ray(spec, whole, tmp_path):
    store = tmp_path / "store"
    done = subprocess.run(
        command(spec, store, "--runner", "ray", "--concurrency", "2"), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same(store, whole)
    assert not list((store / "ray").glob("*")), "Ray's own folder is cleared"


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


def test_an_optuna_search_repeats_and_measures_its_best_on_test(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(SEARCH))
    for name in ("one", "two"):
        subprocess.run(command(file, tmp_path / name, "--search", "optuna"), check=True, capture_output=True)
    same(tmp_path / "one", tmp_path / "two")
    measured = Board(tmp_path / "one" / "board").read("measurements").to_pylist()
    trials = {r["trial"]: r for r in Board(tmp_path / "one" / "board").read("trials").to_pylist()}
    assert 2 <= len(trials) <= 4
    seen = {(r["trial"], r["split"]) for r in measured if r["subject"] == "unlearned"}
    assert sum(split == "dev" for _, split in seen) == len(trials)
    assert sum(split == "test" for _, split in seen) == 1, "a search sees dev; its best is measured on test"


@pytest.mark.ray
def test_an_optuna_search_runs_on_ray(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(SEARCH))
    done = subprocess.run(
        command(file, tmp_path / "store", "--runner", "ray", "--concurrency", "2"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    board = Board(tmp_path / "store" / "board")
    assert {r["status"] for r in board.read("trials").to_pylist()} == {"ok"}
    assert "test" in {r["split"] for r in board.read("measurements").to_pylist()}


def test_a_failed_trial_is_a_row_and_the_next_run_mends_it(spec, tmp_path):
    """A truncated checkpoint fails the trials that need it, with a message that names the file, and nothing else."""
    store = tmp_path / "store"
    subprocess.run(command(spec, store, "seed=0", "--grid", "seed=0"), check=True, capture_output=True)
    (target,) = (store / "stages" / "target").glob("*/model.safetensors")
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    shutil.rmtree(store / "stages" / "unlearn")
    broken = subprocess.run(command(spec, store), capture_output=True, text=True)
    assert broken.returncode == 1
    assert "model.safetensors" in broken.stderr
    assert "cut short" in broken.stderr
    trials = Board(store / "board").read("trials").to_pylist()
    assert {r["status"] for r in trials} == {"ok", "failed"}, "rows that were there stay"
    target.write_bytes(whole)
    subprocess.run(command(spec, store), check=True, capture_output=True)
    assert {r["status"] for r in Board(store / "board").read("trials").to_pylist()} == {"ok"}
