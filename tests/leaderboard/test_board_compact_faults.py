"""Compaction that is killed, crowded or out of space: whatever happens, the board shows what it showed."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board import compact, files, schema, store, views
from leaderboard.board.compact import PREFIX
from leaderboard.board.store import Board, BoardError, Broken
from tests.support.board_compacting import (
    POINTS,
    compact_and_die,
    compact_for_a_while,
    compact_forever,
    compact_once,
    counts,
    fill,
    left_out,
    names,
    shown,
    write_for_a_while,
)
from tests.support.board_rows import trial_row
from tests.support.command import regrade
from tests.support.disks import small_disk

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board"


def _run(work: Callable[..., None], *args: Any) -> int:
    process = SPAWN.Process(target=work, args=args)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("call", [pytest.param(call, marks=[pytest.mark.slow] * (call == "fsync")) for call in POINTS])
def test_killed_before_or_after_any_call_nothing_is_lost(path: Path, call: str):
    """A child is forked for each point: it has the modules, and Arrow's threads have not started in this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.board_compacting"])
    fill(path, 3)
    Board(path).append("trials", [trial_row("x", anchors="one")])
    Board(path).append("trials", [trial_row("x", anchors="other")])
    before, told = shown(path), left_out(path)
    killed = 0
    for nth, first in itertools.product((1, 2, 3, 4, 6, 9, 13, 20), (True, False)):
        process = context.Process(target=compact_and_die, args=(str(path), call, nth, first))
        process.start()
        process.join(120)
        assert shown(path) == before and left_out(path) == told
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        fill(path, 3)
    assert killed > 1
    counts(path)
    assert shown(path) == before and left_out(path) == told
    assert len(names(path)) == 3 and len(names(path, "samples")) == 1


def test_killed_at_random_instants_nothing_is_lost(path: Path):
    fill(path, 12)
    before, rng = shown(path), random.Random(0)
    for _ in range(4):
        process = SPAWN.Process(target=compact_forever, args=(str(path), 12))
        process.start()
        time.sleep(rng.uniform(1, 4))
        process.kill()
        process.join(60)
        assert shown(path) == before and left_out(path) == []
    counts(path)
    assert shown(path) == before
    assert all(len(names(path, table)) == 1 for table in schema.TABLES)


def test_two_compactions_at_once_do_no_harm(path: Path):
    fill(path, 20)
    before, barrier = shown(path), SPAWN.Barrier(2)
    both = [SPAWN.Process(target=compact_once, args=(str(path), barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert shown(path) == before and left_out(path) == []


def test_beside_writers_and_compactions_a_reader_finds_every_row(path: Path):
    fill(path)
    seconds, barrier = 8.0, SPAWN.Barrier(3)
    others = [SPAWN.Process(target=compact_for_a_while, args=(str(path), barrier, seconds)) for _ in range(2)]
    others += [SPAWN.Process(target=write_for_a_while, args=(str(path), n, seconds + 4)) for n in range(2)]
    for process in others:
        process.start()
    barrier.wait(60)
    told: list[Broken] = []
    board, seen, reads = Board(path, told.append), set(), 0
    wanted = repr(board.read("samples").to_pylist())
    while any(process.is_alive() for process in others):
        found = set(board.read("trials")["trial"].to_pylist())
        assert seen <= found
        assert repr(board.read("samples").to_pylist()) == wanted
        seen, reads = found, reads + 1
    assert reads > 2 and len(seen) > 12
    assert [process.exitcode for process in others] == [0, 0, 0, 0]
    assert told == []
    entries = set(board.read("trials")["entry"].to_pylist())
    for writer in range(2):
        own = sorted(int(entry.split()[2]) for entry in entries if entry.startswith(f"own {writer} "))
        assert own == list(range(len(own))) and len(own) > 1
    counts(path)
    assert set(Board(path).read("trials")["entry"].to_pylist()) == entries


@pytest.mark.parametrize("when", ["listed", "half listed", "judged", "read", "asked"])
def test_a_reader_whose_files_vanish_reads_the_new_ones(path: Path, when: str, monkeypatch: pytest.MonkeyPatch):
    fill(path)
    wanted, told, done = shown(path)["trials"], [], []
    board = Board(path, told.append)

    def compacted() -> None:
        if not done:
            done.append(True)
            assert counts(path)["trials"] == (6, 1)

    def interrupted(owner: Any, name: str, after: bool = False) -> None:
        plain = getattr(owner, name)

        def stand_in(*args: Any, **options: Any) -> Any:
            if after:
                result = plain(*args, **options)
                compacted()
                return result
            compacted()
            return plain(*args, **options)

        monkeypatch.setattr(owner, name, stand_in)

    if when == "half listed":  # the new file came, and the others went, where the listing had not been yet
        plain = board._storage.list

        def torn(prefix: str = "", suffix: str = "") -> list[str]:
            if done:
                return plain(prefix, suffix)
            compacted()
            return []

        monkeypatch.setattr(board._storage, "list", torn)
    elif when == "asked":
        interrupted(store.query, "answer")
        assert board.sql("SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 12}]
    else:
        owner, name, after = {
            "listed": (board._storage, "list", True),
            "judged": (views, "flawless", False),
            "read": (views, "create_views", True),
        }[when]
        interrupted(owner, name, after)
    assert repr(board.read("trials").to_pylist()) == wanted
    assert done and told == []


def test_a_compaction_whose_files_vanish_merges_the_new_ones(path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(path)
    wanted, plain, done = shown(path), compact._write, []

    def beaten(*args: Any) -> Any:
        if not done:
            done.append(True)
            Board(path).compact()
        return plain(*args)

    monkeypatch.setattr(compact, "_write", beaten)
    Board(path).compact()
    assert done and shown(path) == wanted and left_out(path) == []


def test_a_full_disk_leaves_everything_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(path)
    before, there = shown(path), {table: names(path, table) for table in schema.TABLES}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BoardError, match=r"not written, No space left on device.*make room there"):
            Board(path).compact()
    assert {table: names(path, table) for table in schema.TABLES} == there
    assert shown(path) == before
    assert not list(path.rglob(".*"))


def test_a_disk_that_is_really_full_is_told_in_one_sentence(tmp_path: Path):
    with small_disk(tmp_path / "store", "1m") as disk:
        board = Board(disk / "board")
        for number in range(8):
            board.append("trials", [trial_row(f"e{number}", spec=random.Random(number).randbytes(20_000).hex())])
        rest = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "rest").write_bytes(bytes(rest - 40_000))
        before, there = shown(disk / "board"), names(disk / "board")
        said = regrade("board", "compact", "--store", disk, code=1).stderr
        assert said.count("\n") == 1 and "No space left on device" in said and "make room there" in said
        assert (shown(disk / "board"), names(disk / "board")) == (before, there)
        assert not list((disk / "board" / "trials").glob(".*"))
        (disk / "rest").unlink()
        regrade("board", "compact", "--store", disk)
        assert shown(disk / "board") == before and len(names(disk / "board")) == 1


def test_a_file_that_is_another_one_by_now_is_not_deleted(path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(path, 3)
    Board(path).append("trials", [trial_row("a")], "named")
    publish = files.publish

    def replaced(*args: Any) -> bool:
        done = publish(*args)
        (path / "trials" / "named.parquet").unlink(missing_ok=True)
        Board(path).append("trials", [trial_row("b")], "named")
        return done

    monkeypatch.setattr(compact, "publish", replaced)
    counts(path)
    assert {"a", "b"} <= set(Board(path).read("trials")["entry"].to_pylist())


def test_another_file_under_the_new_name_keeps_the_old_ones(tmp_path: Path):
    for folder in ("one", "other"):
        fill(tmp_path / folder)
    counts(tmp_path / "one")
    name = names(tmp_path / "one")[0].removesuffix(".parquet")
    path = tmp_path / "other"
    put_there = Board(path).append("trials", [trial_row("squatter", status="failed")], name).path
    os.utime(put_there)
    before = shown(path)
    counts(path)
    assert shown(path) == before


def test_a_file_that_cannot_be_deleted_is_told_and_counts_once(path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(path)
    before, unlink = shown(path), Path.unlink

    def refused(file: Path, missing_ok: bool = False) -> None:
        if file.suffix == ".parquet" and not file.name.startswith(PREFIX):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(file, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        with pytest.raises(BoardError, match="6 such files are not deleted, Operation not permitted"):
            Board(path).compact()
    assert shown(path) == before
    assert counts(path)["trials"] == (7, 1)


# The verb
