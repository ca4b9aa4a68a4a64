"""One bad trial among seven: six good rows, and one that says why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import suite.trials.run
from leaderboard.board.store import Board
from suite.config.runtime import RuntimeSpec
from suite.runners import Outcome, TrialJob, run_here, run_one
from suite.runners.base import lease_name
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec, trial
from suite.storage.store import Store
from tests.support.small import SMALL

BAD = 3
"""Seed of the trial that goes wrong; seeds 0 to 6 run."""

MEASURE = MeasureSpec(attacks=(), limit=2, match=None)


class Panic(BaseException):
    """What an extension in Rust raises where it gives up: no `Exception`."""


def seven(store: Path, **bad: Any) -> list[TrialJob]:
    """Seven jobs, of which one has other settings."""
    specs = [trial({**SMALL, "steps": 1, **(bad if seed == BAD else {}), "seed": seed}) for seed in range(7)]
    return [TrialJob(spec, MEASURE, RuntimeSpec(), store) for spec in specs]


def ran(jobs: list[TrialJob], run: Callable[[list[TrialJob], Callable[[Outcome], None]], None]) -> dict[int, Any]:
    """The rows by seed, after six good outcomes and one that is not ok."""
    outcomes: list[Outcome] = []
    run(jobs, outcomes.append)
    assert {outcome.trial: outcome.label for outcome in outcomes} == {job.spec.id: job.spec.label for job in jobs}
    rows = {row["seed"]: row for row in Board(jobs[0].store / "board").read("trials").to_pylist()}
    assert {seed for seed, row in rows.items() if row["status"] == "ok"} == set(range(7)) - {BAD}
    (outcome,) = [outcome for outcome in outcomes if outcome.status != "ok"]
    assert (rows[BAD]["status"], rows[BAD]["reason"]) == (outcome.status, outcome.reason)
    assert json.loads(rows[BAD]["spec"]) == jobs[BAD].spec.canonical
    return rows


def trained_model(store: Path) -> Path:
    """The folder of a target that was trained in another store."""
    run_here(seven(store)[:1], lambda outcome: None)
    (manifest,) = (store / "stages" / "target").glob("*.json")
    return Store(store).stages.get("target", manifest.stem).folder


def test_a_model_that_is_not_there(tmp_path):
    jobs = seven(tmp_path, model={"name": "/nowhere/model"})
    row = ran(jobs, run_here)[BAD]
    assert row["status"] == "failed"
    assert row["reason"].startswith("MissingError: model.name: /nowhere/model: no such folder")


def test_weights_that_are_cut_short(tmp_path):
    folder = Path(shutil.copytree(trained_model(tmp_path / "other"), tmp_path / "model"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    row = ran(seven(tmp_path, anchors={"target": str(folder), "retrained": str(folder)}), run_here)[BAD]
    assert row["status"] == "failed"
    assert "model.safetensors: cut short or damaged" in row["reason"]


def test_steps_that_diverge(tmp_path):
    row = ran(seven(tmp_path, steps=8, optimizer={"name": "sgd", "lr": 1e30}), run_here)[BAD]
    assert row["status"] == "diverged"
    assert "finite" in row["reason"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit("the library gave up"), "SystemExit: the library gave up"),
        (Panic("called `unwrap()` on a `None` value"), "Panic: called `unwrap()` on a `None` value"),
        (MemoryError("no 64 GiB here"), "MemoryError: no 64 GiB here"),
        (OSError("caf\udce9.json: no such file"), "OSError: caf\\udce9.json: no such file"),
        (RecursionError("\x00" + "x" * 9000), "RecursionError: \x00xxx"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_library_raises(tmp_path, monkeypatch, error, reason):
    unlearn = suite.trials.run.unlearn

    def raising(spec: TrialSpec, *rest: Any) -> Any:
        if spec.seed == BAD:
            raise error
        return unlearn(spec, *rest)

    monkeypatch.setattr(suite.trials.run, "unlearn", raising)
    row = ran(seven(tmp_path), run_here)[BAD]
    assert row["status"] == "failed"
    assert row["reason"].startswith(reason)


def test_ctrl_c_is_no_failure_of_a_trial(tmp_path, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite.trials.run, "unlearn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_here(seven(tmp_path), lambda outcome: None)
    assert Board(tmp_path / "board").read("trials").num_rows == 0


def test_a_row_that_cannot_be_written_is_said_in_the_outcome(tmp_path):
    job = replace(seven(tmp_path, model={"name": "/nowhere/model"})[BAD], store=tmp_path / "file")
    job.store.write_text("not a folder")
    outcome = run_one(job)
    assert outcome.status == "failed"
    assert "Its row is not on the board" in outcome.reason


def kill_whenever_it_runs(job: TrialJob, times: int, done: threading.Event) -> list[int]:
    """Kill the process that holds the trial's lease, so many times; returns the list that its pids are added to."""
    killed: list[int] = []
    lease = job.store / "leases" / lease_name(job.spec)

    def watch() -> None:
        while len(killed) < times and not done.wait(0.02):
            with suppress(OSError, ValueError):
                pid = json.loads(lease.read_text())["pid"]
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    threading.Thread(target=watch, daemon=True).start()
    return killed


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_a_trial_that_loses_three_workers_has_its_row(tmp_path, capfd):
    from suite.runners.ray_tune import run_on_ray

    done = threading.Event()
    jobs = seven(tmp_path)
    killed = kill_whenever_it_runs(jobs[BAD], 9, done)
    try:
        rows = ran(jobs, lambda jobs, on_outcome: run_on_ray(jobs, on_outcome, address=None, concurrency=2))
    finally:
        done.set()
    assert len(killed) == 3
    assert rows[BAD]["reason"].startswith("WorkerLost: 3 workers were lost while running it")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("its worker was lost; the trial is started again") == 2
    assert "Traceback" not in printed.err


@pytest.mark.ray
def test_on_ray_a_wrong_request_is_a_row_and_is_not_tried_again(tmp_path, capfd):
    from suite.runners.ray_tune import run_on_ray

    jobs = seven(tmp_path, model={"name": "/nowhere/model"})
    began = time.monotonic()
    row = ran(jobs, lambda jobs, on_outcome: run_on_ray(jobs, on_outcome, address=None, concurrency=2))[BAD]
    assert row["reason"].startswith("MissingError: model.name: /nowhere/model: no such folder")
    assert "started again" not in capfd.readouterr().err
    assert time.monotonic() - began < 300
