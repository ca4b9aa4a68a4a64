"""SQL queries of the board: one SELECT, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from leaderboard.board.query import Limits
from leaderboard.board.store import Board, BoardError
from tests.support.board_rows import measurement_row, trial_row


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")


def test_sql_answers_over_all_tables(board: Board):
    board.append("trials", [trial_row("a"), trial_row("b", optimizer="sgd")])
    measured = [measurement_row(row["trial"], "unlearned", 0.25) for row in board.read("trials").to_pylist()]
    board.append("measurements", measured)
    query = "SELECT optimizer, avg(value) AS mean FROM trials JOIN measurements USING (trial) GROUP BY ALL ORDER BY 1"
    assert board.sql(query).to_pylist() == [{"optimizer": "adamw", "mean": 0.25}, {"optimizer": "sgd", "mean": 0.25}]


def test_sql_says_what_is_wrong_with_a_query(board: Board):
    with pytest.raises(BoardError, match="syntax error"):
        board.sql("SELEC 1")
    with pytest.raises(BoardError, match='"optimiser" not found'):
        board.sql("SELECT optimiser FROM trials")


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{}/out.csv'",
        "SELECT 1; SELECT 2",
        "CREATE TABLE t (i INT)",
        "SET threads = 1",
        "",
        "ATTACH '{}/x.db'",
    ],
)
def test_sql_takes_one_select_and_nothing_else(board: Board, query: str):
    with pytest.raises(BoardError, match="one SELECT"):
        board.sql(query.format(board.path.parent))
    assert list(board.path.parent.iterdir()) == []


def test_sql_reads_nothing_but_the_board(board: Board):
    added = board.append("trials", [trial_row("a")]).path
    secret = board.path.parent / "secret.csv"
    secret.write_text("word\nhidden\n")
    (board.path / "link.csv").symlink_to(secret)
    (board.path / "csv.py").write_text("raise SystemExit")  # the process of the query is in this folder
    queries = [
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM read_csv('{board.path}/../secret.csv')",
        f"SELECT * FROM read_text('{board.path}/link.csv')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_text('http://127.0.0.1/')",
        "SELECT getenv('HOME')",
        "SELECT * FROM secret",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM query('COPY trials TO ''x''')",
    ]
    for query in queries:
        with pytest.raises(BoardError):
            board.sql(query)
    assert board.sql("SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 1}]
    assert [path.name for path in added.parent.iterdir()] == [added.name]


@pytest.mark.parametrize(
    "statement",
    [
        "SET memory_limit = '100GB'",
        "PRAGMA enable_profiling",
        "INSTALL httpfs",
        "LOAD httpfs",
        "EXPORT DATABASE 'x'",
        "CALL duckdb_settings()",
        "EXPLAIN SELECT 1",
        "INSERT INTO trials VALUES (1)",
        "BEGIN",
    ],
)
def test_sql_changes_no_setting_and_loads_nothing(board: Board, statement: str):
    with pytest.raises(BoardError):
        board.sql(statement)


ENDLESS = [
    "WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM t) SELECT max(x) FROM t",
    "SELECT count(*) FROM range(100000000000000) a WHERE hash(a) = 1",  # needs no memory, so time is what it meets
    "SELECT levenshtein(repeat('a', 3000000), repeat('b', 3000000))",  # DuckDB does not interrupt it
]


@pytest.mark.parametrize("query", ENDLESS)
def test_a_query_without_end_is_stopped(board: Board, query: str):
    started = time.monotonic()
    with pytest.raises(BoardError, match=r"more than 2 s\. What to do: ask for less, or .*Limits\(seconds=4\)"):
        board.sql(query, Limits(seconds=2))
    assert time.monotonic() - started < 60


LARGE = [
    "SELECT list(range) FROM range(1000000000000)",
    "SELECT string_agg(repeat('x', 1000), '') FROM range(1000000000000)",
    "SELECT length(repeat('x', 4000000000)) FROM range(2000)",
    "SELECT repeat('x', 1000) FROM range(1000000000)",  # an answer that is too large
]


@pytest.mark.parametrize("query", LARGE)
def test_a_query_that_needs_too_much_memory_is_stopped(board: Board, query: str):
    with pytest.raises(BoardError, match=r"more than 268,435,456 bytes of memory.*Limits\(memory=536870912\)"):
        board.sql(query, Limits(memory=1 << 28))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT length(repeat('x', 1000000000000))",
        f"SELECT {'(' * 20_000}1{')' * 20_000}",
        "SELECT 1" + " + 1" * 20_000,
        "SELECT CAST('x' AS INTEGER)",
        "SELECT error('a\x1b[2Jb')",
        "SELECT '\x00",
    ],
    ids=["long", "brackets", "sum", "cast", "escape", "zero"],
)
def test_a_query_that_fails_is_told_as_one(board: Board, query: str):
    board.append("trials", [trial_row("a")])
    with pytest.raises(BoardError) as told:
        board.sql(query)
    assert "\x1b" not in str(told.value)
