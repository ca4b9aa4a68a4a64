"""The store, many writers: nothing lost, nothing twice, nothing half, whoever dies and wherever the disk ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.store import Board, BoardError
from tests.support.board_rows import trial_row
from tests.support.board_writers import OWN, SHARED, append, append_with_little_room, die_while_writing

SPAWN = multiprocessing.get_context("spawn")


def test_writers_at_once_lose_nothing_and_write_nothing_twice(tmp_path: Path):
    barrier, results = SPAWN.Barrier(2), SPAWN.Queue()
    writers = [SPAWN.Process(target=append, args=(str(tmp_path), n, barrier, results)) for n in range(2)]
    for writer in writers:
        writer.start()
    new = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join(60)
    assert [sum(each[SHARED:]) for each in new] == [OWN, OWN]
    assert sum(sum(each[:SHARED]) for each in new) == SHARED
    found = Board(tmp_path).read("trials")["entry"].to_pylist()
    wanted = [f"shared {i}" for i in range(SHARED)] + [f"own {n} {i}" for n in range(2) for i in range(OWN)]
    assert sorted(found) == sorted(wanted)
    assert len(list((tmp_path / "trials").iterdir())) == SHARED + 2 * OWN


def test_a_killed_writer_leaves_what_nobody_reads_and_the_next_one_clears(tmp_path: Path):
    writer = SPAWN.Process(target=die_while_writing, args=(str(tmp_path),))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    [left] = (tmp_path / "trials").iterdir()
    assert left.name.startswith(".") and left.stat().st_size > 0
    board = Board(tmp_path)
    assert len(board.read("trials")) == 0 and board.broken() == []

    board.append("trials", [trial_row("a")])
    assert left.exists(), "a writer may still be busy with a fresh file"
    two_hours_ago = time.time() - 7200
    os.utime(left, (two_hours_ago, two_hours_ago))
    board.append("trials", [trial_row("b")])
    assert not left.exists()
    assert sorted(board.read("trials")["entry"].to_pylist()) == ["a", "b"]


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path):
    results = SPAWN.Queue()
    writer = SPAWN.Process(target=append_with_little_room, args=(str(tmp_path), results))
    writer.start()
    message = results.get(timeout=60)
    writer.join(60)
    assert str(tmp_path / "trials") in message and "make room there and run again" in message
    assert list((tmp_path / "trials").iterdir()) == []


def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    board = Board(tmp_path)
    board.append("trials", [trial_row("before")])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BoardError, match=r"after\.parquet: not written, No space left on device.*make room there"):
            board.append("trials", [trial_row("after")], name="after")
    assert len(list((tmp_path / "trials").iterdir())) == 1
    assert board.append("trials", [trial_row("after")], name="after").new
    assert len(board.read("trials")) == 2


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BoardError, match="see that the directory can be written"):
        Board(tmp_path / "file").append("trials", [trial_row("a")])


def test_a_file_from_where_no_link_leads_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = Board(tmp_path / "there").append("trials", [trial_row("a")]).path
    link = os.link

    def within_a_file_system(old: Path, new: Path) -> None:
        if old.parent != new.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(old, new)

    monkeypatch.setattr(os, "link", within_a_file_system)
    board = Board(tmp_path / "here")
    added = board.append_file("trials", source, "copied")
    board.append("trials", [trial_row("b")])
    assert not board.append_file("trials", source, "copied").new
    assert not added.path.samefile(source) and added.path.read_bytes() == source.read_bytes()
    assert sorted(board.read("trials")["entry"].to_pylist()) == ["a", "b"]
    assert not list((board.path / "trials").glob(".*"))


def test_without_hard_links_nothing_is_written_for_the_last_writer_would_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = Board(tmp_path / "there").append("trials", [trial_row("a")]).path

    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    board = Board(tmp_path / "here")
    for attempt in (
        lambda: board.append_file("trials", source, "copied"),
        lambda: board.append("trials", [trial_row("b")]),
    ):
        with pytest.raises(BoardError, match=r"its file system has no hard links.*Name a folder on a local disk"):
            attempt()
    assert list((board.path / "trials").iterdir()) == []


def test_a_link_whose_answer_is_lost_is_a_row_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS makes the link and loses the reply; the retry then fails because the name exists."""
    source = Board(tmp_path / "there").append("trials", [trial_row("a")]).path
    link = os.link

    def lost(*args: Any) -> None:
        link(*args)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lost)
    board = Board(tmp_path / "here")
    assert board.append("trials", [trial_row("b")]).new
    assert not board.append("trials", [trial_row("b")]).new
    assert board.append_file("trials", source, "linked").new
    assert sorted(board.read("trials")["entry"].to_pylist()) == ["a", "b"]
