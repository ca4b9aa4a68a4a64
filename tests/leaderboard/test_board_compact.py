"""Compaction: many files become few, and whatever happens meanwhile, the board shows what it showed."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.board import compact, files, schema, store, views
from leaderboard.board.compact import CONTESTED, LEFT_OUT, PREFIX
from leaderboard.board.store import Board, BoardError, Broken
from leaderboard.ranking.rank import rank
from tests.support.board_compacting import (
    POINTS,
    compact_and_die,
    compact_for_a_while,
    compact_forever,
    compact_once,
    fill,
    sample_row,
    write_for_a_while,
)
from tests.support.board_rows import Row, measurement_row, schema_tables, showcase, trial_row
from tests.support.command import regrade
from tests.support.disks import small_disk
from tests.support.hostile_board import FILES, bad_entry, good_board, put

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board"


def shown(path: Path) -> dict[str, list[Row]]:
    """All that reading gives, to the last bit: a float's repr tells it from every other one, and NaN is itself."""
    board = Board(path, lambda _: None)
    return {table: repr(board.read(table).to_pylist()) for table in schema.TABLES}


def left_out(path: Path) -> list[str]:
    return sorted(map(str, Board(path).broken()))


def names(path: Path, table: str = "trials") -> list[str]:
    return sorted(file.name for file in (path / table).iterdir() if not file.name.startswith("."))


def counts(path: Path) -> dict[str, tuple[int, int]]:
    return {one.table: (one.before, one.after) for one in Board(path, lambda _: None).compact()}


def test_many_files_become_one_per_table_and_show_the_same(path: Path):
    fill(path)
    board = Board(path)
    before, results = shown(path), {table: board.result_rows(table) for table in schema.TABLES}
    assert counts(path) == dict.fromkeys(schema.TABLES, (6, 1))
    assert shown(path) == before
    for table, wanted in results.items():
        assert repr(Board(path).result_rows(table).to_pylist()) == repr(wanted.to_pylist())
        assert names(path, table)[0].startswith(PREFIX)
    assert counts(path) == dict.fromkeys(schema.TABLES, (1, 1))
    assert Board(path).sql("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 18}]


def test_the_ranking_is_the_same_to_the_last_digit(path: Path):
    tables = schema_tables(*showcase())
    for table, rows in tables.items():
        for row in rows.to_pylist():
            Board(path).append(table, [row])
    before = json.dumps(rank(Board(path), "paper", "test").as_json())
    assert len(names(path)) > 30
    assert counts(path)["trials"][1] == 1
    assert json.dumps(rank(Board(path), "paper", "test").as_json()) == before


def test_rows_that_are_written_again_are_equal_and_vanish_with_the_next_compaction(path: Path):
    fill(path)
    before = shown(path)
    counts(path)
    merged = {table: names(path, table) for table in schema.TABLES}
    fill(path)
    assert shown(path) == before and left_out(path) == []
    assert counts(path) == dict.fromkeys(schema.TABLES, (7, 1))
    assert {table: names(path, table) for table in schema.TABLES} == merged
    assert shown(path) == before
    later = {"written_at": "2027-01-01T00:00:00Z", "host": "elsewhere"}
    Board(path).append("trials", [trial_row("e1", 1, **later)])
    assert counts(path)["trials"] == (2, 1)
    assert shown(path) == before
    assert pq.read_metadata(path / "trials" / names(path)[0]).num_rows == 12


def test_a_board_that_grows_keeps_few_files(path: Path):
    for number in range(4):
        for seed in range(3):
            Board(path).append("trials", [trial_row(f"e{number}", seed)])
        counts(path)
        assert len(names(path)) == 1
    assert len(Board(path).read("trials")) == 12


def test_the_same_files_become_the_same_file_anywhere(tmp_path: Path):
    for folder in ("one", "other"):
        fill(tmp_path / folder)
        counts(tmp_path / folder)
    for table in schema.TABLES:
        assert names(tmp_path / "one", table) == names(tmp_path / "other", table)


# Which row counts


def _row(table: str, choice: tuple[str, int, str, int | None]) -> Row:
    name, value, status, hour = choice
    written = None if hour is None else f"2026-01-01T0{hour}:00:00Z"
    if table == "trials":
        row = trial_row("e", status=status, seed=value % 2, steps=value, host=str(value), written_at=written)
        return row | {"trial": name}
    if table == "measurements":
        value_of = {"value": value / 2 if status == "ok" else None, "status": status, "reason": str(value)}
        return measurement_row(name, "target", 0.5) | value_of | {"written_at": written}
    if table == "samples":
        return sample_row(name, 0, generated=str(value % 2), token_logprobs=[float(value // 2)])
    return {"samples": name, "probe": "p", "metric": "m", "item": ["q"], "value": [float(value)]}


CHOICES = st.tuples(
    st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["ok", "failed"]), st.sampled_from([None, 0, 1])
)


@pytest.mark.parametrize("table", schema.TABLES)
def test_of_rows_with_one_key_the_same_one_counts_and_the_same_is_left_out(table: str):
    """Whatever the files' names are, and whether a file was merged before."""

    @settings(max_examples=6, deadline=None)
    @given(st.lists(st.lists(CHOICES, min_size=1, max_size=3), max_size=6), st.randoms(use_true_random=False))
    def check(files: list[list[tuple[str, int, str, int | None]]], rng: random.Random) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "board"
            (path / table).mkdir(parents=True)
            for rows in files:
                name = rng.choice("0A_z") + "".join(rng.choices("0+Az_", k=8))
                put(path.parent, table, [_row(table, row) for row in rows], name)
                if rng.random() < 0.2:
                    counts(path)
            told, before = left_out(path), shown(path)
            for _ in range(2):
                counts(path)
                assert shown(path) == before
                assert left_out(path) == told

    check()


def test_rows_that_contradict_stay_where_they_are_and_are_told_as_before(path: Path):
    fill(path)
    first = Board(path).append("trials", [trial_row("x", anchors="one")]).path
    other = Board(path).append("trials", [trial_row("x", anchors="other", written_at="2027-01-01T00:00:00Z")]).path
    told = left_out(path)
    assert len(told) == 1 and "another row has the same key and other content" in told[0]
    [trials, *_] = Board(path, lambda _: None).compact()
    assert (trials.before, trials.after) == (8, 3)
    assert {one.path: one.reason for one in trials.stays} == {first: CONTESTED, other: LEFT_OUT}
    assert left_out(path) == told and first.exists() and other.exists()


def test_a_row_that_comes_later_does_not_count_before_a_merged_one(path: Path):
    fill(path)
    counts(path)
    before = shown(path)
    for name in ("0", "00", "0-", "A"):
        Board(path).append("trials", [trial_row("e1", 1, anchors="elsewhere")], name)
        Board(path).append("samples", [sample_row("s1", 1, generated="other")], name)
    assert shown(path) == before
    assert len(left_out(path)) == 4
    counts(path)
    assert shown(path) == before and len(left_out(path)) == 4


def test_broken_files_and_rows_stay_where_they_are_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = good_board(tmp_path).path
    for number, make in enumerate(FILES.values()):
        made = make(tmp_path)
        made.rename(made.with_name(f"{number}{made.name}"))
    row, rows = bad_entry(seed=-1)
    wrong = put(tmp_path, "trials", [row, trial_row("sound")], "wrong")
    put(tmp_path, "measurements", [rows[0] | {"value": float("nan")}, *rows[1:]], "wrong")
    before, told = shown(path), left_out(path)  # some damage is found when values are read
    said: list[Broken] = []
    [trials, measurements, *_] = Board(path, said.append).compact()
    assert (trials.after, measurements.after) == (len(FILES) + 2, 2)
    assert [one.path for one in trials.stays] == [wrong]
    assert sorted(map(str, said)) == told == left_out(path)
    assert shown(path) == before
    assert len(said) == len(FILES) + 2


def test_a_file_with_columns_of_a_later_version_keeps_them(path: Path):
    fill(path, 3)
    later = schema.to_arrow("trials", [trial_row("later")]).append_column("invented", pa.array(["x"]))
    pq.write_table(later, path / "trials" / "later.parquet")
    [trials, *_] = Board(path).compact()
    assert [(one.path.name, one.reason) for one in trials.stays] == [("later.parquet", compact.COLUMNS)]
    assert pq.read_table(path / "trials" / "later.parquet")["invented"].to_pylist() == ["x"]


def test_files_that_lack_a_column_and_files_without_rows_are_merged(path: Path):
    fill(path, 3)
    old = schema.to_arrow("samples", [sample_row("old", 1)]).drop(["sampled", "vocab_means"])
    pq.write_table(old, path / "samples" / "old.parquet")
    pq.write_table(schema.TABLES["samples"].empty_table(), path / "samples" / "empty.parquet")
    before = shown(path)
    assert counts(path)["samples"] == (5, 1)
    assert shown(path) == before


# Limits


def test_a_merged_file_is_never_larger_than_readers_allow(path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(8):
        Board(path).append("trials", [trial_row(f"e{number}", reason="x" * 1000)])
    before = shown(path)
    with monkeypatch.context() as patch:
        patch.setattr(views, "TEXT", 5_000)
        assert counts(path)["trials"] == (8, 2)
        assert left_out(path) == [] and shown(path) == before
    monkeypatch.setitem(compact.MOST_ROWS, "trials", 4)
    assert counts(path)["trials"] == (2, 2)  # full


def test_large_tables_are_merged_in_parts_of_bounded_memory(path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("GROUP", 1 << 12), ("BATCH", 16)):
        monkeypatch.setattr(compact, name, value)
    monkeypatch.setitem(compact.AT_ONCE, "samples", 2)
    monkeypatch.setitem(compact.MOST_ROWS, "samples", 100)
    for _ in range(2):
        for number in range(10):
            Board(path).append("samples", [sample_row(f"s{number}", item) for item in range(30)], f"s{number}")
        before = shown(path)
        assert counts(path)["samples"][1] <= 4 + 4
        assert shown(path) == before
    assert pq.read_metadata(path / "samples" / names(path, "samples")[0]).num_row_groups > 2
    merged = [file for file in names(path, "samples") if file.startswith(PREFIX)]
    assert all(pq.read_metadata(path / "samples" / file).num_rows <= 100 for file in merged)


# Killed, crowded, full


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


def test_the_verb_says_how_many_files_became_how_many(tmp_path: Path):
    fill(tmp_path / "board")
    Board(tmp_path / "board").append("trials", [trial_row("e1", anchors="other")])
    said = regrade("board", "compact", "--store", tmp_path, "--json")
    found = {one["table"]: one for one in json.loads(said.stdout)}
    assert [(one["before"], one["after"]) for one in found.values()] == [(7, 3), (6, 1), (6, 1), (6, 1)]
    assert sorted(one["reason"] for one in found["trials"]["stays"]) == sorted([CONTESTED, LEFT_OUT])
    table = regrade("board", "compact", "--store", tmp_path)
    assert "trials" in table.stdout and "not merged" in table.stderr
    assert "no board here" in regrade("board", "compact", "--store", tmp_path / "nowhere", code=2).stderr
