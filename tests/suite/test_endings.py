"""How a sweep ends that does not end by itself: the code, the sentence, the rows, and that nothing is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from leaderboard.board.store import Board
from tests.support.processes import Running, run, start
from tests.support.small import SMALL

SWEEP = {
    **SMALL,
    "steps": 60,
    "measure": {"attacks": [], "limit": 2, "match": None},
    "search": {"grid": {"seed": [0, 1, 2, 3, 4, 5, 6]}},
}
SEARCH = {
    **SWEEP,
    "search": {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "trials": 6},
}
UNFINISHED = re.compile(
    r"(\d) of (\d) trials are done, (\d) are missing\. The same command goes on where this one stopped"
)
SIGNALS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return written(tmp_path / "sweep.yaml", SWEEP)


@pytest.fixture
def search(tmp_path: Path) -> Path:
    return written(tmp_path / "search.yaml", SEARCH)


def written(file: Path, settings: dict) -> Path:
    file.write_text(yaml.safe_dump(settings))
    return file


def after_first_outcome(process: Running) -> None:
    """Wait until the first trial is done."""
    deadline = time.monotonic() + 300
    while not (process.stderr.exists() and "[1/" in process.stderr.read_text()):
        assert process.poll() is None, process.stderr.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def counts(printed: str) -> tuple[int, int, int]:
    """Numbers of trials in the last sentence: done, all, missing."""
    (found,) = UNFINISHED.findall(printed)
    return tuple(map(int, found))


def rows(store: Path) -> list[dict]:
    return Board(store / "board").read("trials").to_pylist()


def ended(process: Running, store: Path, code: int, word: str, total: int = 7) -> None:
    """The process ends with this code, one sentence and no traceback, and the rows that it counted are there."""
    done = process.wait()
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith(f"regrade: {word}")
    finished, expected, missing = counts(done.stderr)
    assert (expected, missing) == (total, total - finished)
    assert finished == done.stderr.count(": ok,") > 0
    assert finished <= len(rows(store)) < total
    deadline = time.monotonic() + 30
    while left := started_for(store):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def started_for(store: Path) -> list[psutil.Process]:
    """The processes that a command has started: Ray's and its workers."""
    processes = psutil.process_iter(["name", "environ"])
    return [process for process in processes if (process.info["environ"] or {}).get("OF_TEST") == str(store)]


def begun(store: Path, *words: object, **env: str) -> Running:
    """A command that is at work; all that it starts has the store's name in its environment."""
    process = start(*words, "--store", store, env={**os.environ, "OF_TEST": str(store), **env})
    after_first_outcome(process)
    return process


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_a_sweep_in_this_process(spec, tmp_path, number):
    store = tmp_path / "store"
    process = begun(store, "sweep", spec)
    os.kill(process.pid, number)
    ended(process, store, *SIGNALS[number])
    run("sweep", spec, "--store", store)
    assert [row["status"] for row in rows(store)] == ["ok"] * 8  # one is a null trial


def test_a_signal_before_the_first_trial_ends_it_too(spec, tmp_path):
    process = start("sweep", spec, "--store", tmp_path / "store")
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    done = process.wait()
    assert done.returncode == 130
    assert done.stderr.startswith("regrade: interrupted")
    assert len(done.stderr.splitlines()) == 1


def test_a_search_that_is_interrupted_measures_nothing_on_test(search, tmp_path):
    store = tmp_path / "store"
    process = begun(store, "sweep", search)
    os.kill(process.pid, signal.SIGINT)
    ended(process, store, 130, "interrupted", total=6)
    assert {row["split"] for row in Board(store / "board").read("measurements").to_pylist()} == {"dev"}


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_search_on_ray(search, tmp_path, number):
    """Ctrl-C reaches every process of the terminal, SIGTERM the one that it is sent to."""
    store = tmp_path / "store"
    process = begun(store, "sweep", search, "--runner", "ray", "--concurrency", "2")
    send: Callable[[int, int], None] = os.killpg if number == signal.SIGINT else os.kill
    send(process.pid, number)
    ended(process, store, *SIGNALS[number], total=6)
    assert {row["split"] for row in Board(store / "board").read("measurements").to_pylist()} == {"dev"}
    assert not list((store / "ray").glob("*"))


def kill(store: Path, name: str) -> None:
    """Kill the process of this name among those that the command has started."""
    (found,) = [process for process in started_for(store) if process.info["name"] == name]
    found.kill()


@pytest.mark.ray
@pytest.mark.parametrize(
    "name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)]
)  # Ray waits 60 s for it
def test_a_sweep_on_ray_that_loses_ray_says_so(spec, tmp_path, name):
    """Ray ends the process that leads the sweep by `_exit`, after a lost head as soon as it has waited long enough."""
    store = tmp_path / "store"
    words = ("sweep", spec, "--runner", "ray", "--concurrency", "2")
    process = begun(store, *words, RAY_gcs_rpc_server_reconnect_timeout_s="3")
    kill(store, name)
    ended(process, store, 1, "the process that led the sweep on Ray ended at once (code 1)")


@pytest.mark.ray
def test_a_sweep_on_ray_does_not_outlive_its_parent(spec, tmp_path):
    store = tmp_path / "store"
    process = begun(store, "sweep", spec, "--runner", "ray", "--concurrency", "2")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while "are missing" not in (printed := process.stderr.read_text()):
        assert time.monotonic() < deadline, printed
        time.sleep(0.1)
    assert counts(printed)[1] == 7


@pytest.fixture
def cluster() -> Iterator[object]:
    """A cluster of real nodes on this machine: a head without CPUs, where the command runs, and two workers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_that_loses_a_node_goes_on_with_the_others(cluster, spec, tmp_path):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    store = tmp_path / "store"
    process = begun(store, "sweep", spec, "--runner", "ray", "--address", cluster.address, "--json")
    cluster.remove_node(nodes[0], allow_graceful=False)
    done = process.wait()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [trial["status"] for trial in json.loads(done.stdout)["trials"]] == ["ok"] * 7
    assert [row["status"] for row in rows(store)] == ["ok"] * 8  # one is a null trial


@pytest.mark.ray
def test_modules_in_the_working_directory_are_nobodys(spec, tmp_path, monkeypatch):
    """Ray would put the folder in front of its workers' path."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("suite", "tasks", "leaderboard", "torch"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w'); raise SystemExit")
    monkeypatch.chdir(folder)
    words = ("sweep", spec, "--grid", "seed=0,1", "steps=1", "--store", tmp_path / "store")
    run(*words, "--runner", "ray")
    run(*words)
    assert not (tmp_path / "canary").exists()
    assert len(rows(tmp_path / "store")) == 2
