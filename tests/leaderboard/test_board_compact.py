"""Compaction: many files become few, and whatever happens meanwhile, the board shows what it showed."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.board import compact, schema, views
from leaderboard.board.compact import CONTESTED, LEFT_OUT, PREFIX
from leaderboard.board.store import Board, Broken
from leaderboard.ranking.rank import rank
from tests.support.board_compacting import counts, fill, left_out, names, sample_row, shown
from tests.support.board_rows import Row, measurement_row, schema_tables, showcase, trial_row
from tests.support.command import regrade
from tests.support.hostile_board import FILES, bad_entry, good_board, put


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board"


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


def test_the_verb_says_how_many_files_became_how_many(tmp_path: Path):
    fill(tmp_path / "board")
    Board(tmp_path / "board").append("trials", [trial_row("e1", anchors="other")])
    said = regrade("board", "compact", "--store", tmp_path, "--json")
    found = {one["table"]: one for one in json.loads(said.stdout)}
    assert [(one["before"], one["after"]) for one in found.values()] == [(7, 3), *[(6, 1)] * (len(schema.TABLES) - 1)]
    assert sorted(one["reason"] for one in found["trials"]["stays"]) == sorted([CONTESTED, LEFT_OUT])
    table = regrade("board", "compact", "--store", tmp_path)
    assert "trials" in table.stdout and "not merged" in table.stderr
    assert "no board here" in regrade("board", "compact", "--store", tmp_path / "nowhere", code=2).stderr
