"""An unlearning run that is killed goes on from what it saved, and ends in the same bits."""

from __future__ import annotations

import json
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from suite.config.runtime import RuntimeSpec
from suite.oracle.base import Metered
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training import step_log
from suite.training.saved_run import SavedRun
from suite.trials.run import run_trial
from tests.support.processes import run, start
from tests.support.small import SMALL

LONG = 1500
ONLY = MeasureSpec(attacks=(), match=None, limit=1, splits=("dev",))
ZO = {"samples": 1, "radius": 1e-2}
METHODS: dict[str, dict[str, Any]] = {
    "second": {"optimizer": {"name": "sophia", "lr": 1e-3, "every": 3}},
    "second, pairs of steps": {"optimizer": {"name": "lbfgs", "lr": 1e-3, "every": 3}},
    "first": {"optimizer": {"name": "adam", "lr": 1e-3}, "checkpoints": {"every": 4}},
    "compressed": {"optimizer": {"name": "compressed_adam", "lr": 1e-3, "bits": 2, "error_feedback": True}},
    "zeroth": {"optimizer": {"name": "r_adazo", "lr": 1e-3, "zo": ZO}},
    "zeroth, without memory": {"optimizer": {"name": "zo_sgd", "lr": 1e-5, "zo": {**ZO, "memory": "seed"}}},
    "zeroth, in subspaces": {
        "optimizer": {"name": "zo_muon", "lr": 1e-3, "zo": {**ZO, "direction": "low_rank", "keep": 4, "samples": 2}}
    },
    "hybrid": {"optimizer": {"name": "hybrid", "lr": 1e-3, "block": 4, "zo": ZO}},
    "averages": {"optimizer": {"name": "adam", "lr": 1e-3}, "smoothing": {"name": "wa", "start": 2, "every": 2}},
    "an adapter": {"optimizer": {"name": "adam", "lr": 1e-3}, "adapter": {"name": "lora", "rank": 2}},
    "a moving objective": {"optimizer": {"name": "adam", "lr": 1e-3}, "objective": {"name": "pdu", "retain_weight": 1}},
}


class Killed(BaseException):
    """Stands for what ends a process between two steps."""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the anchors."""
    root = tmp_path_factory.mktemp("saved")
    run_trial(trial(merged(SMALL, {"steps": 1})), Store(root), measure=ONLY)
    return root


def of(method: str) -> Any:
    return trial(merged(SMALL, {"steps": 13, **METHODS[method]}))


def ended(store: Store, spec: Any) -> dict[str, Any]:
    """What a run ends in, without its times."""
    run_trial(spec, store, measure=ONLY, runtime=RuntimeSpec(save_minutes=0))
    (manifest,) = (
        found
        for path in (store.root / "stages" / "unlearn").glob("*.json")
        if (found := json.loads(path.read_text()))["inputs"]["trial"]["steps"] == spec.steps
    )
    meta = {name: value for name, value in manifest["meta"].items() if name != "observed"}
    files = {name: file["sha256"] for name, file in manifest["files"].items() if name != step_log.FILE}
    log = step_log.read(store.root / "stages" / "unlearn" / manifest["folder"] / step_log.FILE)
    assert log["step"] == list(range(1, spec.steps + 1)) and log.pop("seconds")
    return {"meta": meta, "files": files, "log": log}


def copied(warm: Path, to: Path) -> Store:
    return Store(shutil.copytree(warm, to))


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_that_is_killed_at_any_step_ends_in_the_same_bits(method, warm, tmp_path, monkeypatch):
    """Saved after every fifth step and killed three times, once before anything was saved."""
    spec = of(method)
    undisturbed = ended(copied(warm, tmp_path / "undisturbed"), spec)
    store, steps, made = copied(warm, tmp_path / "killed"), [0], []

    def due(self: SavedRun) -> bool:
        steps[0] += 1
        made.append(steps[0])
        return steps[0] % 5 == 0

    stepped = Metered.stepped

    def until(self: Metered, last: int) -> None:
        stepped(self)
        if steps[0] + 1 == last:
            raise Killed

    monkeypatch.setattr(SavedRun, "due", due)
    for last, begins in ((3, 0), (8, 0), (12, 5)):
        steps[0] = begins
        with monkeypatch.context() as killing:
            killing.setattr(Metered, "stepped", lambda self, last=last: until(self, last))
            with pytest.raises(Killed):
                ended(store, spec)
    steps[0], made[:] = 10, []
    assert ended(store, spec) == undisturbed
    assert made == [11, 12], "two steps were left"
    assert not list((store.root / "stages" / "unlearn").glob("*-unfinished"))


@pytest.mark.parametrize("damage", [b"", b"cut short", None], ids=["empty", "cut", "of another run"])
def test_a_damaged_state_begins_the_run_anew(damage, warm, tmp_path, monkeypatch):
    spec, store, save = of("first"), copied(warm, tmp_path / "damaged"), SavedRun.save

    def save_and_die(self: SavedRun, *args: Any) -> None:
        save(self, *args)
        raise Killed

    with monkeypatch.context() as killing:
        killing.setattr(SavedRun, "save", save_and_die)
        killing.setattr(SavedRun, "due", lambda self: True)
        with pytest.raises(Killed):
            ended(store, spec)
    (file,) = (store.root / "stages" / "unlearn").glob("*-unfinished/state.pt")
    if damage is None:
        torch.save({"weights": [], "parts": {}, "own": {}}, file)
    else:
        file.write_bytes(damage)
    with pytest.warns(UserWarning, match="begun anew"):
        found = ended(store, spec)
    assert found == ended(copied(warm, tmp_path / "undisturbed"), spec)


def test_saving_takes_at_most_a_twentieth_of_a_run(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saved = SavedRun(tmp_path / "run", minutes=0.5)
    assert not saved.due()
    now[0] = 30
    assert saved.due()
    monkeypatch.setattr("suite.training.saved_run.replace_file", lambda *args: now.__setitem__(0, now[0] + 10))
    saved.save([], {}, {})
    now[0] += 199
    assert not saved.due(), "the last save took ten seconds"
    now[0] += 1
    assert saved.due()


def saved_since(store: Path, moment: float) -> bool:
    with suppress(FileNotFoundError):  # the run has just ended
        return any(
            file.stat().st_mtime > moment for file in (store / "stages" / "unlearn").glob("*-unfinished/state.pt")
        )
    return False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["second", "first", "compressed", "zeroth", "hybrid"])
def test_sigkill_at_ten_instants_changes_no_bit(method, warm, tmp_path):
    spec = tmp_path / "spec.yaml"
    changes = {**METHODS[method], "steps": LONG}
    spec.write_text(yaml.safe_dump({**merged(SMALL, changes), "measure": ONLY.changed()}))
    one, other = tmp_path / "undisturbed", tmp_path / "killed"
    copied(warm, one), copied(warm, other)
    run("run", spec, "--store", one)
    draw, killed = random.Random(method), 0
    for _ in range(10):
        began = time.time()
        process = start("run", spec, "--store", other, "runtime.save_minutes=0")
        while process.poll() is None and not saved_since(other, began):
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1))
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
    assert killed >= 3, "the run was over too soon"
    run("run", spec, "--store", other)
    wanted, found = (
        {
            name: file["sha256"]
            for path in (store / "stages" / "unlearn").glob("*.json")
            for name, file in json.loads(path.read_text())["files"].items()
            if name != step_log.FILE
            if json.loads(path.read_text())["inputs"]["trial"]["steps"] == LONG
        }
        for store in (one, other)
    )
    assert wanted == found
