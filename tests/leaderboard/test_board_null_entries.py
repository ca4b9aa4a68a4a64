"""What a board gives for models that stand for no method: none is above the retrained model."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.schema import RANDOM_CHANGE
from leaderboard.board.store import Board
from leaderboard.page import render
from leaderboard.ranking.compare import NotCompared, compare
from leaderboard.ranking.measured import engines_of
from leaderboard.ranking.null_entries import MOST_CHANGES, null_text
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.synthetic import CONSTANT, REFUSAL, UNLIKELY, constant, refusal
from tasks.task import Sample
from tests.support.board_rows import (
    ENGINE,
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    item_rows,
    runs_of,
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


def _null_runs(f: float, r: float, u: float, norm: float = 1.19, **changes: Any) -> list[tuple[Row, list[Row]]]:
    """Three null trials with these numbers."""
    what = {"optimizer": RANDOM_CHANGE, "objective": None, "grade": None, "change_norm": norm, **changes}
    return runs_of(f"null {norm} {changes}", f, r, u, **what)


def _filled(path: Path, *runs: tuple[Row, list[Row]]) -> Board:
    board = Board(path)
    fill(board, [row for row, _ in runs], [*anchor_rows(), *(row for _, rows in runs for row in rows)], noise=0.1)
    return board


ENTRIES = [*runs_of("a", 0.9, 0.8, 0.95), *runs_of("b", 0.8, 0.4, 0.97)]


def test_null_trials_stand_among_the_null_entries_and_change_nothing_else(tmp_path: Path):
    best = _null_runs(0.999, 0.999, 1.0)  # whatever their numbers are
    alone, beside = _filled(tmp_path / "alone", *ENTRIES), _filled(tmp_path / "beside", *ENTRIES, *best)
    for matched in (False, True):
        one, other = (rank(board, "paper", matched=matched) for board in (alone, beside))
        assert replace(other, null_entries=()) == replace(one, null_entries=())
        assert json.dumps(other.as_json() | {"null_entries": []}) == json.dumps(one.as_json() | {"null_entries": []})
    assert other.null_entries == one.null_entries  # none was measured at matched utility
    shown = [null for null in rank(beside, "paper").null_entries if null.name.startswith("random")]
    assert [(null.name, null.runs) for null in shown] == [("random change of norm 1.19", 3)]
    for number, value in ((shown[0].forgetting, 0.999), (shown[0].robustness, 0.999), (shown[0].utility, 1.0)):
        assert number.plain == pytest.approx(value, abs=0.05) and number.interval is not None
        assert number.interval[0] <= number.value <= number.interval[1]
    assert null_text(shown[0]).startswith("random change of norm 1.19 (3 runs) ")


def test_null_trials_are_compared_with_nothing_and_no_reason_to_rank(tmp_path: Path):
    other = [(row, [one | {"engine": "other"} for one in of]) for row, of in _null_runs(0.5, 0.4, 0.9, 3.0)]
    board = _filled(tmp_path / "board", *ENTRIES, *_null_runs(0.5, 0.4, 0.9), *other)
    entry = _null_runs(0.5, 0.4, 0.9)[0][0]["entry"]
    with pytest.raises(NotCompared):
        compare(board, "paper", "test", ["a", entry])
    only = _filled(tmp_path / "only", *_null_runs(0.5, 0.4, 0.9))
    found = rank(only, "paper")
    assert (found.entries, found.group, found.null_entries, found.unmeasured) == ((), None, (), 0)
    assert engines_of(only, "paper", "test") == set() and engines_of(board, "paper", "test") == {ENGINE}


def test_null_trials_of_other_anchors_engines_and_ends_are_not_shown(tmp_path: Path):
    elsewhere = _null_runs(0.5, 0.4, 0.9, 2.0, anchor_ids="another:pair", anchors="others")
    failed = _null_runs(0.5, 0.4, 0.9, 4.0, status="failed", reason="out of memory")
    diverged = _null_runs(0.5, 0.4, 0.9, 8.0, status="diverged", reason="weights are not finite")
    unmeasured = [(row, []) for row, _ in _null_runs(0.5, 0.4, 0.9, 16.0)]
    shown = _null_runs(0.5, 0.4, 0.9, 1.0)
    board = _filled(tmp_path, *ENTRIES, *elsewhere, *failed, *diverged, *unmeasured, *shown)
    names = [null.name for null in rank(board, "paper").null_entries if null.name.startswith("random")]
    assert names == ["random change of norm 1"]


def test_of_many_random_changes_some_are_shown_the_smallest_first(tmp_path: Path):
    runs = [run for norm in range(12, 0, -1) for run in _null_runs(0.5, 0.4, 0.9, float(norm))[: 3 if norm > 4 else 2]]
    names = [null.name for null in rank(_filled(tmp_path, *ENTRIES, *runs), "paper").null_entries]
    shown = [int(name.split()[-1]) for name in names if name.startswith("random")]
    assert len(shown) == MOST_CHANGES and shown == sorted(shown) and min(shown) > 4


def test_random_changes_of_one_norm_are_told_apart_by_what_was_changed(tmp_path: Path):
    gains = _null_runs(0.3, 0.2, 0.9, spec='{"trainable": ["*norm*"], "random_change": 1.19}')
    board = _filled(tmp_path, *ENTRIES, *gains, *_null_runs(0.5, 0.4, 0.9))
    names = [null.name for null in rank(board, "paper").null_entries]
    random = sorted(name for name in names if name.startswith("random"))
    assert random == ["random change of norm 1.19 in *", "random change of norm 1.19 in *norm*"]


@pytest.mark.parametrize("norm", [None, math.inf, math.nan, -1.0, 1e300, 0.0])
@pytest.mark.parametrize("spec", ["", "[", '{"trainable": 3}', '{"trainable": {"a": 1}}', '{"trainable": [[1]]}'])
def test_no_norm_and_no_spec_of_a_null_trial_stops_a_ranking(tmp_path: Path, norm: float | None, spec: str):
    one, other = (_null_runs(f, 0.2, 0.9, norm, spec=spec, model=str(f)) for f in (0.5, 0.6))
    found = rank(_filled(tmp_path, *ENTRIES, *one, *other), "paper")
    assert len([null for null in found.null_entries if null.name.startswith("random change")]) == 2
    json.dumps(found.as_json(), allow_nan=False)
    assert len(found.entries) == 2


def test_the_page_has_the_words_of_the_terminal(tmp_path: Path):
    ranking = rank(_filled(tmp_path, *ENTRIES, *_null_runs(0.5, 0.4, 0.9)), "paper")
    page = render([ranking], generated="today")
    for null in ranking.null_entries:
        assert null_text(null) in page


def test_synthetic_answers_are_answers_of_the_same_kind():
    asked = Sample("q", "x", generated="Paris", token_logprobs=(-0.1, -0.2), token_correct=(True, False))
    choices = Sample("q", "x", choice_logprobs=(-1.0, -2.0, -3.0), choice_lengths=(1, 1, 1), correct=2)
    assert refusal(asked).generated == REFUSAL and constant(asked).generated == CONSTANT
    assert refusal(asked).token_logprobs == (UNLIKELY, UNLIKELY) and refusal(asked).token_correct == (False, False)
    assert len(set(refusal(choices).choice_logprobs)) == 1 and refusal(choices).generated is None
    assert max(range(3), key=constant(choices).choice_logprobs.__getitem__) == 0
