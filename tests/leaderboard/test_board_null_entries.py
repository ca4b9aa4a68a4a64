"""What a board gives for models that stand for no method: none is above the retrained model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from leaderboard.board.store import Board
from leaderboard.ranking.null_entries import null_text
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.synthetic import CONSTANT, REFUSAL, UNLIKELY, constant, refusal
from tasks.task import Sample
from tests.support.board_rows import (
    TEACHING,
    anchor_rows,
    entry_rows,
    fill,
    item_rows,
    sample_rows,
    schema_tables,
    with_samples,
)


def _world() -> tuple[list, list]:
    anchors = anchor_rows(taught={TEACHING[0]: 0.1, TEACHING[1]: 0.3})
    attacked = [row | {"subject": "target", "value": 0.9} for row in anchors if row["attack"] != "none"]
    trial, rows = entry_rows("a", 0.8, 0.7, 0.95)
    return [trial], [with_samples(row) for row in (*anchors, *attacked, *rows)]


def _numbers(ranking: Ranking) -> dict[str, tuple[float | None, ...]]:
    """F, R, U and score of each null entry."""
    found = {one.name: one for one in ranking.null_entries}
    assert len(found) == len(ranking.null_entries)
    return {
        name: (one.forgetting.value, one.robustness.value, one.utility.value, one.score.value)
        for name, one in found.items()
    }


def test_the_anchors_are_the_ends_of_the_scale():
    ranking = rank(schema_tables(*_world()), "paper")
    found = _numbers(ranking)
    assert found["target"] == pytest.approx((0, 0, 1, 0))
    assert found["retrained"] == pytest.approx((1, 1, 1, 1))
    assert found.keys() == {"target", "retrained"}  # the others are made of the target's answers
    for one in ranking.null_entries:  # as entries: chosen on other questions, with an interval, the plain number beside
        assert one.runs == 1 and one.score.interval is not None
        assert one.score.plain == pytest.approx(one.score.value)
    assert null_text(ranking.null_entries[0]) == "target 0.00 (0.00..0.00), 0.00, 0.00, 1.00"


def test_without_items_the_anchors_have_no_intervals():
    tables = schema_tables(*_world())
    ranking = rank({name: tables[name] for name in ("trials", "measurements")}, "paper")
    assert _numbers(ranking)["retrained"] == pytest.approx((1, 1, 1, 1))
    assert [one.score.interval for one in ranking.null_entries] == [None, None]
    assert null_text(ranking.null_entries[0]) == "target 0.00, 0.00, 0.00, 1.00"


def test_an_empty_answer_is_not_above_the_retrained_model(tmp_path: Path):
    trials, measured = _world()
    board = Board(tmp_path)
    fill(board, trials, measured)
    board.append("samples", sample_rows(item_rows(measured)))
    found = _numbers(rank(board, "paper"))
    assert found.keys() == {"target", "retrained", "refuses everything", "always says the same"}
    for name in ("refuses everything", "always says the same"):
        # It knows nothing, not even what the attacks teach, and it is of no use.
        assert found[name] == pytest.approx((1, 1, 0, 0), abs=0.01)
    assert all(score <= found["retrained"][3] for *_, score in found.values())


def test_samples_are_read_for_empty_answers_once(tmp_path: Path):
    trials, measured = _world()
    board = Board(tmp_path)
    fill(board, trials, measured)
    board.append("samples", sample_rows(item_rows(measured)))
    found = rank(board, "paper")
    shutil.rmtree(tmp_path / "samples")
    before = sorted(path.name for path in (tmp_path / "items").iterdir())
    assert rank(Board(tmp_path), "paper") == found
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == before
    board.compact()
    assert rank(Board(tmp_path), "paper") == found


def test_a_board_without_samples_shows_no_empty_answers(tmp_path: Path):
    board = Board(tmp_path)
    fill(board, *_world())
    assert _numbers(rank(board, "paper")).keys() == {"target", "retrained"}


def test_synthetic_answers_are_answers_of_the_same_kind():
    asked = Sample("q", "x", generated="Paris", token_logprobs=(-0.1, -0.2), token_correct=(True, False))
    choices = Sample("q", "x", choice_logprobs=(-1.0, -2.0, -3.0), choice_lengths=(1, 1, 1), correct=2)
    assert refusal(asked).generated == REFUSAL and constant(asked).generated == CONSTANT
    assert refusal(asked).token_logprobs == (UNLIKELY, UNLIKELY) and refusal(asked).token_correct == (False, False)
    assert len(set(refusal(choices).choice_logprobs)) == 1 and refusal(choices).generated is None
    assert max(range(3), key=constant(choices).choice_logprobs.__getitem__) == 0
