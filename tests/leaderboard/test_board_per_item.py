"""What is brought back of each question by whichever attack brings back most of it."""

from __future__ import annotations

import pytest

from leaderboard.board import schema
from leaderboard.ranking.rank import rank
from tests.support.board_rows import (
    TASK,
    TEACHING,
    anchor_rows,
    item_rows,
    trial_row,
    unlearned_rows,
    with_samples,
)

ITEMS = 48


def halves(first: float, second: float) -> list[float]:
    return [first if index % 2 else second for index in range(ITEMS)]


def ranked(answers: dict[str, list[float]], retrained: dict[str, list[float]]):
    """A board with an entry that answers the questions so under these attacks, beside a retrained model."""
    trials, measured, values = [], [], {}
    anchors = anchor_rows(taught={attack: sum(one) / ITEMS for attack, one in retrained.items()})
    for seed in (1, 2, 3):
        row = trial_row("a", seed)
        trials.append(row)
        attacked = {attack: sum(one) / ITEMS for attack, one in answers.items()}
        measured += unlearned_rows(row["trial"], 0.1, attacked, 0.9)
    measured = [with_samples(row) for row in (*anchors, *measured)]
    for row in measured:
        if row["headline"] == "knowledge":
            given = {"unlearned": answers, "retrained": retrained}.get(row["subject"], {})
            values[row["samples"], row["probe"]] = given.get(row["attack"], [row["value"]] * ITEMS)
    items = [row | {"value": values.get((row["samples"], row["probe"]), row["value"])} for row in item_rows(measured)]
    rows = {"trials": trials, "measurements": measured, "items": items}
    return rank({table: schema.to_arrow(table, of) for table, of in rows.items()}, TASK.name).entries[0]


def everywhere(value: float) -> dict[str, list[float]]:
    return {attack: [value] * ITEMS for attack in TEACHING}


def test_attacks_that_bring_back_other_questions_bring_back_all_of_them_together():
    answers = everywhere(0.1) | {TEACHING[0]: halves(0.9, 0.1), TEACHING[1]: halves(0.1, 0.9)}
    entry = ranked(answers, everywhere(0.1))
    assert entry.robustness.plain == pytest.approx(0.5)
    assert entry.per_item.value == pytest.approx(1.0)
    assert entry.per_item.interval == pytest.approx((1.0, 1.0), abs=1e-5)


def test_attacks_that_bring_back_the_same_questions_bring_back_no_more_together():
    answers = everywhere(0.1) | dict.fromkeys(TEACHING[:2], halves(0.9, 0.1))
    entry = ranked(answers, everywhere(0.1))
    assert entry.per_item.value == pytest.approx(entry.recovery[TEACHING[0]].value)


def test_what_the_best_attack_for_each_question_teaches_the_retrained_model_is_not_brought_back():
    answers = everywhere(0.1) | {TEACHING[0]: halves(0.9, 0.1), TEACHING[1]: halves(0.1, 0.9)}
    assert ranked(answers, answers).per_item.value == pytest.approx(0.0, abs=1e-9)
