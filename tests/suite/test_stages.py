"""The stage store under concurrency, sudden death, damage and a full disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.storage.leases import Leases
from suite.storage.stages import StageError, StageStore

SPAWN = multiprocessing.get_context("spawn")


def write(folder: Path, text: str = "forgotten") -> dict:
    (folder / "out.txt").write_text(text)
    return {"length": len(text)}


def test_a_stage_is_computed_once_and_then_read(tmp_path):
    store = StageStore(tmp_path)
    first = store.run("kind", {"a": 1}, write)
    again = store.run("kind", {"a": 1}, lambda folder: pytest.fail("computed twice"))
    assert first == again
    assert again.file("out.txt").read_text() == "forgotten"
    assert again.meta == {"length": 9}
    assert store.computed == {"kind": [first.key]}
    fresh = StageStore(tmp_path)
    fresh.run("kind", {"a": 1}, lambda folder: pytest.fail("computed twice"))
    assert (fresh.computed, fresh.reused) == ({}, {"kind": {first.key}})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_keys_depend_on_content_and_not_on_order(inputs):
    backwards = dict(reversed(inputs.items()))
    assert StageStore.key("k", inputs) == StageStore.key("k", backwards)
    assert StageStore.key("k", inputs) != StageStore.key("other", inputs)
    assert StageStore.key("k", {**inputs, "one more": 1}) != StageStore.key("k", inputs)


def compute_slowly(root: Path, log: Path) -> None:
    def slow(folder: Path) -> dict:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return write(folder, str(os.getpid()))

    StageStore(root).run("kind", {"a": 1}, slow)


def test_several_processes_compute_a_stage_once(tmp_path):
    log = tmp_path / "log"
    workers = [SPAWN.Process(target=compute_slowly, args=(tmp_path / "store", log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(log.read_text().split()) == 1


def test_the_first_publication_wins_and_everybody_uses_its_bytes(tmp_path):
    """Two writers that hold the lease both, as after a takeover: the loser reads the winner's bytes."""
    store, other = StageStore(tmp_path), StageStore(tmp_path)

    def overtaken(folder: Path) -> dict:
        (tmp_path / "leases").joinpath(f"kind-{StageStore.key('kind', {})}").unlink()
        other.run("kind", {}, lambda f: write(f, "first"))
        return write(folder, "second")

    assert store.run("kind", {}, overtaken).file("out.txt").read_text() == "first"
    folders = [path for path in (tmp_path / "stages" / "kind").iterdir() if path.is_dir()]
    assert len(folders) == 1, "the loser's folder is gone"


def test_a_failed_computation_leaves_nothing(tmp_path):
    store = StageStore(tmp_path)

    def fails(folder: Path) -> dict:
        write(folder)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.run("kind", {}, fails)
    assert list((tmp_path / "stages" / "kind").iterdir()) == []
    assert store.run("kind", {}, write).meta == {"length": 9}


@pytest.mark.parametrize("harm", ["cut", "gone", "manifest"])
def test_damage_is_named_and_the_rest_stays_readable(tmp_path, harm):
    store = StageStore(tmp_path)
    hurt, sound = store.run("kind", {"a": 1}, write), store.run("kind", {"a": 2}, write)
    manifest = tmp_path / "stages" / "kind" / f"{hurt.key}.json"
    match harm:
        case "cut":
            os.truncate(hurt.file("out.txt"), 3)
            words = ["out.txt", "cut short: 3 of 9 bytes"]
        case "gone":
            hurt.file("out.txt").unlink()
            words = ["out.txt", "is missing"]
        case "manifest":
            os.truncate(manifest, 10)
            words = ["damaged"]
    with pytest.raises(StageError) as error:
        store.run("kind", {"a": 1}, write)
    for word in [*words, str(manifest)]:
        assert word in str(error.value)
    assert len(store.damaged()) == 1
    assert store.get("kind", sound.key) == sound
    manifest.unlink()
    assert store.run("kind", {"a": 1}, write).meta == hurt.meta, "doing as told mends it"


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    """A file size limit makes the kernel refuse writes as a full disk does (EFBIG; ENOSPC is made of it)."""
    code = f"""
import errno, resource, signal
from pathlib import Path
from suite.storage.stages import StageError, StageStore
store = StageStore(Path({str(tmp_path)!r}))
kept = store.run("kind", {{"a": 1}}, lambda f: (f / "x").write_bytes(b"1" * 100) and {{}})
def full(folder):
    try:
        (folder / "big").write_bytes(b"0" * 10**6)
    except OSError as error:
        raise OSError(errno.ENOSPC, "No space left on device") from error
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    store.run("kind", {{"a": 2}}, full)
except StageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
assert store.get("kind", kept.key)
assert store.run("kind", {{"a": 2}}, lambda f: (f / "x").write_bytes(b"1") and {{"ok": 1}}).meta["ok"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout
    assert str(tmp_path) in done.stdout


def hold_for_ever(root: Path, ready) -> None:
    with Leases(root).hold("x"):
        ready.set()
        time.sleep(600)


def test_a_lease_passes_on_when_its_holder_is_killed(tmp_path):
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold_for_ever, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(60)
    leases = Leases(tmp_path)
    assert not leases.free("x")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert leases.free("x")
    with leases.hold("x") as held:
        assert held


def test_a_silent_holder_on_another_machine_loses_its_lease(tmp_path):
    (tmp_path / "x").write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1", "id": "a"}))
    leases = Leases(tmp_path)
    assert not leases.free("x")
    leases.silence = 0.3
    with leases.hold("x") as held:
        assert held


def test_a_holder_whose_heart_beats_keeps_its_lease(tmp_path):
    path = tmp_path / "x"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1", "id": "a"}))
    leases = Leases(tmp_path)
    leases.silence = 0.5
    end, beats = time.monotonic() + 2, []

    def beating() -> bool:
        os.utime(path)
        beats.append(1)
        return time.monotonic() > end

    with leases.hold("x", until=beating) as held:
        assert not held
    assert len(beats) > 3
    assert path.exists(), "another's lease is not ours to remove"


def test_waiting_ends_as_soon_as_there_is_nothing_to_wait_for(tmp_path):
    (tmp_path / "x").write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1", "id": "a"}))
    with Leases(tmp_path).hold("x", until=lambda: True) as held:
        assert not held
