"""The stage store under concurrency, sudden death and damage, and its leases."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.storage import NotWritable
from suite.config.errors import StageError
from suite.storage import leases as of_leases
from suite.storage.leases import Leases
from suite.storage.stages import ABANDONED_AFTER, StageStore

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


def lose_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS when the reply to a link is lost: the link is made, and the repeated request finds that the name exists."""
    link = os.link

    def lost(*args: Any) -> None:
        link(*args)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lost)


def test_a_stage_whose_link_was_answered_by_nobody_is_published(tmp_path, monkeypatch):
    lose_answers(monkeypatch)
    store = StageStore(tmp_path)
    published = store.run("kind", {}, write)
    assert published.file("out.txt").read_text() == "forgotten"
    assert store.computed == {"kind": [published.key]}
    assert StageStore(tmp_path).get("kind", published.key) == published


def test_a_lease_whose_link_was_answered_by_nobody_is_held(tmp_path, monkeypatch):
    lose_answers(monkeypatch)
    with Leases(tmp_path).hold("x", until=lambda: True) as held:
        assert held
    assert list(tmp_path.iterdir()) == [], "and given back"


def test_what_was_published_stays_whatever_happens_right_after(tmp_path, monkeypatch):
    """Ctrl-C, or a disk failure, between the link and the return."""
    link = os.link

    def interrupted(*args: Any) -> None:
        link(*args)
        if args[1].suffix == ".json":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        StageStore(tmp_path).run("kind", {}, write)
    monkeypatch.undo()
    found = StageStore(tmp_path).run("kind", {}, lambda folder: pytest.fail("computed twice"))
    assert found.file("out.txt").read_text() == "forgotten"


def test_without_hard_links_a_stage_is_not_published_and_the_reason_is_told(tmp_path, monkeypatch):
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(NotWritable, match="no hard links"):
        StageStore(tmp_path).run("kind", {}, lambda folder: pytest.fail("computed in vain"))


def aged(path: Path) -> Path:
    """Set times as if the path had not been touched for longer than a live worker would leave it."""
    long_ago = time.time() - ABANDONED_AFTER - 3600
    os.utime(path, (long_ago, long_ago))
    return path


def unnamed(root: Path, key: str) -> Path:
    """The folder of a stage that is not published, a day old."""
    folder = root / "stages" / "kind" / f"{key[:16]}-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("a day of training")
    return aged(folder)


def test_folders_of_dead_writers_go_and_those_of_published_stages_stay(tmp_path):
    store = StageStore(tmp_path)
    published = store.run("kind", {"a": 1}, write)
    aged(published.folder)
    dead = [unnamed(tmp_path, StageStore.key("kind", {"a": 2})), unnamed(tmp_path, published.key)]
    fresh = unnamed(tmp_path, StageStore.key("kind", {"a": 3}))
    os.utime(fresh)
    StageStore(tmp_path).run("kind", {"a": 4}, write)
    assert [folder.exists() for folder in (published.folder, *dead, fresh)] == [True, False, False, True]


def test_a_damaged_manifest_of_another_stage_stops_nobody(tmp_path):
    store = StageStore(tmp_path)
    hurt = store.run("kind", {"a": 1}, write)
    aged(hurt.folder)
    os.truncate(tmp_path / "stages" / "kind" / f"{hurt.key}.json", 10)
    StageStore(tmp_path).run("kind", {"a": 2}, write)
    assert hurt.folder.exists(), "whether the manifest named it is not known"


def test_a_folder_that_is_published_while_others_sweep_stays(tmp_path, monkeypatch):
    """A worker that was suspended for days publishes after the manifests were listed, and releases its lease."""
    worker, key = StageStore(tmp_path), StageStore.key("kind", {"a": 1})
    folder = unnamed(tmp_path, key)

    def overtaking(self: Leases, prefix: str, silence: float) -> bool:
        worker._publish("kind", key, folder, {}, {})
        return False

    monkeypatch.setattr(Leases, "at_work", overtaking)
    StageStore(tmp_path).run("kind", {"a": 2}, write)
    assert worker.get("kind", key).file("weights").read_text() == "a day of training"


@pytest.mark.parametrize("silent", [0, 3600, ABANDONED_AFTER + 3600])
def test_a_folder_that_somebody_elsewhere_works_on_stays_as_long_as_the_lease_is_touched(tmp_path, silent):
    """The worker's own folder shows no sign of life, as that of an earlier version."""
    key = StageStore.key("kind", {"a": 1})
    folder, lease = unnamed(tmp_path, key), tmp_path / "leases" / f"kind-{key}"
    lease.parent.mkdir()
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": "1", "id": "a"}))
    os.utime(lease, (time.time() - silent,) * 2)
    StageStore(tmp_path).run("kind", {"a": 2}, write)
    assert folder.exists() == (silent < ABANDONED_AFTER)


def test_a_folder_that_a_process_of_this_machine_works_on_stays_however_silent_it_is(tmp_path):
    """A process that was suspended for days holds its lease without touching it."""
    key = StageStore.key("kind", {"a": 1})
    folder, ready = unnamed(tmp_path, key), SPAWN.Event()
    holder = SPAWN.Process(target=hold_for_ever, args=(tmp_path / "leases", ready, f"kind-{key}"))
    holder.start()
    try:
        assert ready.wait(60)
        os.kill(holder.pid, signal.SIGSTOP)
        aged(tmp_path / "leases" / f"kind-{key}")
        StageStore(tmp_path).run("kind", {"a": 2}, write)
        assert folder.exists()
    finally:
        holder.kill()
        holder.join()
    StageStore(tmp_path).run("kind", {"a": 3}, write)
    assert not folder.exists()


def test_a_worker_that_writes_at_its_end_shows_that_it_lives(tmp_path, monkeypatch):
    """A worker's folder is touched while it computes, even after it lost its lease; earlier versions see this too."""
    monkeypatch.setattr(of_leases, "HEARTBEAT", 0.01)

    def slow(folder: Path) -> dict:
        (tmp_path / "leases").joinpath(f"kind-{StageStore.key('kind', {'a': 1})}").unlink()
        aged(folder)
        while time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
            time.sleep(0.01)
        StageStore(tmp_path).run("kind", {"a": 2}, write)
        return write(folder)

    assert StageStore(tmp_path).run("kind", {"a": 1}, slow).meta == {"length": 9}


def test_a_store_as_it_was_laid_out_from_the_beginning_is_read(tmp_path):
    """Names and manifest as version 0.1.0 wrote them."""
    inputs = {"a": 1}
    key = StageStore.key("kind", inputs)
    folder = tmp_path / "stages" / "kind" / f"{key[:16]}-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "out.txt").write_text("forgotten")
    files = {"out.txt": {"bytes": 9, "sha256": "0" * 64}}
    manifest = {"key": key, "inputs": inputs, "folder": folder.name, "files": files, "meta": {"length": 9}}
    (folder.parent / f"{key}.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    store = StageStore(tmp_path)
    assert store.run("kind", inputs, lambda folder: pytest.fail("computed twice")).folder == folder
    assert store.damaged() == []


def hold_for_ever(root: Path, ready, name: str = "x") -> None:
    with Leases(root).hold(name):
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
