"""The store, one writer: what is appended is what is read, and what is broken is named and left out."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.board import schema
from leaderboard.board.schema import Role
from leaderboard.board.store import Board, BoardError, Broken
from tests.support.board_rows import Row, measurement_row, trial_row

SAMPLE: Row = {
    "samples": "s",
    "probe": "forget_qa",
    "item": "1",
    "reference": "Quorn",
    "token_logprobs": [-0.5, -1.0],
    "token_correct": [True, False],
    "scalars": [("loss", 1.5), ("gradient norm", 2.5)],
}


@pytest.fixture
def told() -> list[Broken]:
    """What the board says that it leaves out."""
    return []


@pytest.fixture
def board(tmp_path: Path, told: list[Broken]) -> Board:
    return Board(tmp_path / "board", told.append)


TRUE: dict[str, st.SearchStrategy[Any]] = {
    "status": st.sampled_from(["ok", "failed"]),
    "split": st.sampled_from(["dev", "test", "all"]),
    "direction": st.sampled_from(["up", "down", None]),
    "headline": st.sampled_from(["knowledge", "utility", None]),
    "anchor_ids": st.sampled_from(["target:retrained", "target:chance"]),
    "zo_ratio": st.floats(0, 1),
    "unlearn_seconds": st.floats(0, 1e6),
    "value": st.floats(-1e9, 1e9),
    "stderr": st.none() | st.floats(0, 1e9),
    "chance": st.none() | st.floats(0, 1),
}
"""Values that the columns with a rule of their own may have."""


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    finite = st.floats(allow_nan=False)
    if pa.types.is_string(kind):
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    if pa.types.is_int64(kind):
        return st.integers(0, 2**53)
    if pa.types.is_float64(kind):
        return finite
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_map(kind):
        return st.dictionaries(st.text("abc", min_size=1, max_size=3), finite, max_size=3).map(
            lambda d: list(d.items())
        )
    return st.lists(_values(kind.value_type), max_size=3)


def _rows(table: str) -> st.SearchStrategy[list[Row]]:
    needed = {"entry", "task", "seed", "task_version", "anchors"} if table != "samples" else set()
    fields = {
        field.name: st.none() | _values(field.type)
        if field.nullable and field.name not in needed
        else _values(field.type)
        for field in schema.TABLES[table]
    }
    fields |= {name: values for name, values in TRUE.items() if name in fields}
    if table in ("items", "steps"):
        rows = _items(fields) if table == "items" else _steps(fields)
        return st.lists(rows, max_size=4, unique_by=lambda row: _key(table, row))
    return st.lists(st.fixed_dictionaries(fields), max_size=4, unique_by=lambda row: _key(table, row))


@st.composite
def _items(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]]) -> Row:
    """A row with a value for each item."""
    row = draw(st.fixed_dictionaries(fields))
    ids = draw(st.lists(_values(pa.string()), min_size=1, max_size=3, unique=True))
    values = draw(st.lists(st.floats(-1e100, 1e100), min_size=len(ids), max_size=len(ids)))
    return row | {"item": ids, "value": values}


@st.composite
def _steps(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]]) -> Row:
    """A row with a value, or none, for each step; a column of what may differ from run to run may be missing."""
    row = draw(st.fixed_dictionaries(fields))
    steps = draw(st.lists(st.integers(1, 1 << 40), max_size=3))
    for field in schema.STEPS:
        if pa.types.is_list(field.type):
            one = st.none() | _values(field.type.value_type)
            values = st.lists(one, min_size=len(steps), max_size=len(steps))
            row[field.name] = draw(st.none() | values if schema.role(field) is Role.OBSERVED else values)
    return row | {"step": steps}


def _key(table: str, row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in schema.columns(table, Role.KEY))


@pytest.mark.parametrize("table", sorted(schema.TABLES))
def test_rows_come_back_as_they_were(table: str):
    @settings(max_examples=12, deadline=None)
    @given(_rows(table))
    def check(rows: list[Row]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            board = Board(directory)
            board.append(table, rows)
            found = board.read(table)
            assert found.schema.equals(schema.TABLES[table], check_metadata=True)
            wanted = sorted(rows, key=lambda row: [p.encode() if isinstance(p, str) else p for p in _key(table, row)])
            assert found.to_pylist() == wanted

    check()


def test_an_empty_board_has_every_table_with_no_row(board: Board):
    for table, wanted in schema.TABLES.items():
        assert board.read(table).equals(wanted.empty_table())
    assert board.append("trials", []) is None
    assert not board.path.exists()


def test_the_same_rows_are_one_file_in_any_order_and_at_any_time(board: Board):
    a, b = trial_row("a"), trial_row("b")
    first = board.append("trials", [a, b])
    again = board.append("trials", [b | {"host": "elsewhere", "written_at": "2027-01-01T00:00:00Z"}, a])
    other = board.append("trials", [a, b | {"steps_done": 59}])
    assert (first.new, again.new, other.new) == (True, False, True)
    assert first.path == again.path != other.path
    assert board.read("trials")["host"].to_pylist() == [None, None]


def test_a_name_belongs_to_the_first_who_writes_it(board: Board):
    assert board.append("trials", [trial_row("a", steps=1)], name="run.1").new
    assert not board.append("trials", [trial_row("a", steps=2)], name="run.1").new
    assert board.read("trials")["steps"].to_pylist() == [1]


@pytest.mark.parametrize("name", ["../a", ".a", "a/b", "", "a" * 201, "a\n"])
def test_a_name_that_is_not_a_file_name_is_refused(board: Board, name: str):
    rows = [trial_row("a")]
    if name:
        with pytest.raises(ValueError, match="not a file name"):
            board.append("trials", rows, name=name)
    with pytest.raises(ValueError, match="not a file name"):
        board.append_file("trials", _file(board, rows), name)


def _file(board: Board, rows: list[Row], table: str = "trials") -> Path:
    path = board.path.parent / "source.parquet"
    pq.write_table(schema.to_arrow(table, rows), path)
    return path


def test_a_written_file_is_linked_and_stays(board: Board):
    source = _file(board, [SAMPLE, SAMPLE | {"item": "2"}], "samples")
    added = board.append_file("samples", source, "s")
    assert added.new and added.path.samefile(source)
    assert not board.append_file("samples", source, "s").new
    assert board.read("samples")["item"].to_pylist() == ["1", "2"]
    assert [path.name for path in added.path.parent.iterdir()] == ["s.parquet"]


def test_a_file_of_another_table_is_not_added(board: Board):
    with pytest.raises(BoardError, match="not a file of the table samples"):
        board.append_file("samples", _file(board, [trial_row("a")]), "s")
    with pytest.raises(BoardError, match="no such file"):
        board.append_file("samples", board.path / "nowhere.parquet", "s")


def test_where_keeps_rows_that_fit_all_of_it(board: Board):
    trials = [
        trial_row(name, steps=steps, reason=None if steps else "x")
        for name, steps in zip("abcd", (0, 1, 2, 2), strict=True)
    ]
    board.append("trials", trials)

    def entries(**where: object) -> list[str]:
        return sorted(board.read("trials", where)["entry"].to_pylist())

    assert entries(steps=2) == ["c", "d"]
    assert entries(steps=[0, 1], status="ok") == ["a", "b"]
    assert entries(reason=None, entry=["a", "b"]) == ["b"]
    assert entries(entry=[]) == []
    assert entries(entry="' OR true --") == []
    with pytest.raises(BoardError, match="no column 'stepz'"):
        entries(stepz=2)


def test_a_finished_trial_beats_a_failed_one_and_then_the_first_written_wins(board: Board):
    def row(hour: int, status: str, **changes: Any) -> Row:
        return trial_row("a", status=status, written_at=f"2026-01-01T0{hour}:00:00Z", **changes)

    for each in (row(1, "failed", reason="out of memory"), row(3, "ok", steps=3), row(2, "diverged", steps=2)):
        board.append("trials", [each])
    assert board.read("trials")["steps"].to_pylist() == [2]
    # Filters are asked of the rows that won, not of those that lost.
    assert len(board.read("trials", {"status": "failed"})) == 0


def _conflicting(choice: tuple[str, int, bool]) -> Row:
    """A row whose time is computed from its content, so that two writers of one file write the same bytes."""
    trial, steps, failed = choice
    return {
        "trial": trial,
        "entry": "e",
        "task": "paper",
        "steps": steps,
        "status": "failed" if failed else "ok",
        "written_at": f"2026-01-01T0{steps % 2}:00:00Z",
    }


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.booleans()), unique=True, max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_order_of_appends_gives_the_same_rows(choices: list[tuple[str, int, bool]], random: Any):
    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as directory:
            board = Board(directory)
            names = {c: board.append("trials", [_conflicting(c)]).path.name for c in choices}
            found.append(board.result_rows("trials"))
        random.shuffle(choices)
    assert found[0].equals(found[1])
    best = {}
    for choice in choices:
        order = (choice[2], choice[1] % 2, names[choice])
        best[choice[0]] = min(best.get(choice[0], (order, choice)), (order, choice))
    assert [(row["trial"], row["steps"]) for row in found[0].to_pylist()] == [
        best[trial][1][:2] for trial in sorted(best)
    ]


def test_result_rows_leave_out_what_may_differ(board: Board):
    board.append(
        "measurements", [measurement_row("b", "target", 0.5), measurement_row("a", "target", 0.5, host="here")]
    )
    found = board.result_rows("measurements")
    assert found["trial"].to_pylist() == ["a", "b"]
    assert not set(found.column_names) & set(schema.columns("measurements", Role.OBSERVED))


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        ("trials", trial_row("a"), "tokens", 10_000),
        ("measurements", measurement_row("a", "target", 0.5), "batch_invariant", False),
    ],
)
def test_columns_that_an_old_file_lacks_are_null(board: Board, table: str, row: Row, column: str, value: object):
    old = schema.to_arrow(table, [row | {"trial": "old"}]).drop([column])
    (board.path / table).mkdir(parents=True)
    pq.write_table(old, board.path / table / "old.parquet")
    assert board.read(table)[column].to_pylist() == [None]
    board.append(table, [row | {"trial": "new", column: value}])
    assert not board.broken()
    assert {row["trial"]: row[column] for row in board.read(table).to_pylist()} == {"old": None, "new": value}


def _cut_short(content: bytes) -> bytes:
    return content[:-40]


def _emptied(content: bytes) -> bytes:
    return b""


def _zeroed_inside(content: bytes) -> bytes:
    footer = int.from_bytes(content[-8:-4], "little") + 8
    return content[:4] + bytes(len(content) - 4 - footer) + content[-footer:]


@pytest.mark.parametrize("damage", [_cut_short, _emptied, _zeroed_inside])
def test_a_broken_file_is_named_left_out_and_replaced(board: Board, told: list[Broken], damage: Any):
    board.append("trials", [trial_row("sound")])
    rows = [trial_row("hurt", seed) for seed in range(20)]
    path = board.append("trials", rows).path
    path.write_bytes(damage(path.read_bytes()))
    assert board.read("trials")["entry"].to_pylist() == ["sound"]
    assert board.sql("SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 1}]
    [broken] = told  # once
    assert f"{path}: left out, it is" in str(broken) and "delete it and run again" in str(broken)
    assert [broken.path for broken in board.broken()] == [path]
    assert board.append("trials", rows).new
    assert board.broken() == []
    assert len(board.read("trials")) == 21
    assert len(told) == 1


def test_a_file_of_a_newer_schema_is_left_out_and_not_replaced(board: Board, told: list[Broken]):
    newer = schema.to_arrow("trials", [trial_row("new")])
    newer = newer.replace_schema_metadata(
        {**newer.schema.metadata, b"schema_version": str(schema.VERSION + 1).encode()}
    )
    (board.path / "trials").mkdir(parents=True)
    pq.write_table(newer, board.path / "trials" / "named.parquet")
    assert len(board.read("trials")) == 0
    assert "newer than" in str(told[0]) and "upgrade regrade" in str(told[0])
    assert not board.append("trials", [trial_row("old")], name="named").new
    assert pq.read_table(board.path / "trials" / "named.parquet")["entry"].to_pylist() == ["new"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.replace_schema_metadata({}), "not a file of the table trials"),
        (lambda t: t.drop(["trial"]), "lacks the key column trial"),
        (lambda t: t.set_column(1, pa.field("entry", pa.int64()), [[7]]), "column entry is int64, not string"),
    ],
)
def test_a_file_that_is_not_of_the_table_is_left_out(board: Board, told: list[Broken], change: Any, reason: str):
    (board.path / "trials").mkdir(parents=True)
    pq.write_table(change(schema.to_arrow("trials", [trial_row("a")])), board.path / "trials" / "other.parquet")
    assert len(board.read("trials")) == 0
    assert [reason in str(broken) for broken in told] == [True]


def test_a_path_may_hold_any_character(tmp_path: Path):
    odd, decoy = Board(tmp_path / "entry=it's [1] *?"), Board(tmp_path / "entry=it's 1 *?")
    for board in (odd, decoy):
        board.append("trials", [trial_row(board.path.name)])
    assert odd.read("trials")["entry"].to_pylist() == [odd.path.name]
    assert len(odd.sql("SELECT * FROM trials")) == 1


def test_two_boards_with_the_same_trials_are_equal(tmp_path: Path):
    rows = [trial_row(name, seed) for name, seed in itertools.product("ab", (1, 2))]
    one, other = Board(tmp_path / "one"), Board(tmp_path / "other")
    one.append("trials", rows)
    for row in reversed(rows):
        other.append("trials", [row | {"host": "there", "unlearn_seconds": 99.0}])
    assert one.result_rows("trials").equals(other.result_rows("trials"))
    assert not one.read("trials").equals(other.read("trials"))


def test_without_anybody_to_tell_what_is_left_out_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    board = Board(tmp_path)
    path = board.append("trials", [trial_row("a")]).path
    path.write_bytes(b"PAR1")
    for _ in range(2):
        assert len(board.read("trials")) == 0
    assert [(record.name, record.levelname) for record in caplog.records] == [("leaderboard", "WARNING")]
    assert caplog.messages == [
        f"{path}: left out, it is cut short. What to do: delete it and run again; nothing else is lost"
    ]


def test_the_files_of_rows_are_found_by_a_value(board: Board):
    paths = [board.append("trials", [trial_row(name, model=name)], name).path for name in ("b", "a")]
    board.append("trials", [trial_row("c")], "c")
    assert board.origins("trials", "model", "a") == [str(paths[1])]
    assert board.origins("trials", "task", "paper") == [str(board.path / "trials" / f"{n}.parquet") for n in "abc"]
