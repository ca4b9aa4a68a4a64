"""SQL queries of the board: one SELECT, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    secret = board.path.parent / "secret.csv"
    secret.write_text("word\nhidden\n")
    for query in (f"SELECT * FROM '{secret}'", f"SELECT * FROM read_text('{secret}')", "SELECT * FROM secret"):
        with pytest.raises(BoardError):
            board.sql(query)
