"""What a board gives for models that stand for no method: none is above the retrained model."""

from __future__ import annotations

from pathlib import Path

import pytest

from leaderboard.board.store import Board
from leaderboard.ranking.null_entries import CONSTANT, REFUSAL, UNLIKELY, _constant, _refusal, null_text
from leaderboard.ranking.rank import rank
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


def test_the_anchors_are_the_ends_of_the_scale():
    found = {one.name: one for one in rank(schema_tables(*_world()), "paper").null_entries}
    target, retrained = found["target"], found["retrained"]
    assert (target.forgetting, target.robustness, target.utility, target.score) == pytest.approx((0, 0, 1, 0))
    assert (retrained.forgetting, retrained.robustness, retrained.score) == pytest.approx((1, 1, 1))
    assert found.keys() == {"target", "retrained"}  # the others are made of the target's answers
    assert null_text(target) == "target 0.00, 0.00, 0.00, 1.00"


def test_an_empty_answer_is_not_above_the_retrained_model(tmp_path: Path):
    trials, measured = _world()
    board = Board(tmp_path)
    fill(board, trials, measured)
    board.append("samples", sample_rows(item_rows(measured)))
    found = {one.name: one for one in rank(board, "paper").null_entries}
    assert found.keys() == {"target", "retrained", "refuses everything", "always says the same"}
    for name in ("refuses everything", "always says the same"):
        # It knows nothing, not even what the attacks teach, and it is of no use.
        assert (found[name].forgetting, found[name].robustness) == pytest.approx((1, 1), abs=0.01)
        assert (found[name].utility, found[name].score) == pytest.approx((0, 0), abs=0.01)
    assert all(one.score <= found["retrained"].score for one in found.values())


def test_synthetic_answers_are_answers_of_the_same_kind():
    asked = Sample("q", "x", generated="Paris", token_logprobs=(-0.1, -0.2), token_correct=(True, False))
    choices = Sample("q", "x", choice_logprobs=(-1.0, -2.0, -3.0), choice_lengths=(1, 1, 1), correct=2)
    assert _refusal(asked).generated == REFUSAL and _constant(asked).generated == CONSTANT
    assert _refusal(asked).token_logprobs == (UNLIKELY, UNLIKELY) and _refusal(asked).token_correct == (False, False)
    assert len(set(_refusal(choices).choice_logprobs)) == 1 and _refusal(choices).generated is None
    assert max(range(3), key=_constant(choices).choice_logprobs.__getitem__) == 0
