"""A trial is ranked by what was measured with the anchors of its row, and whatever else there is is named."""

from __future__ import annotations

import pytest

from leaderboard.ranking.rank import rank
from tests.support.board_rows import TEACHING, anchor_rows, runs_of, schema_tables

OTHER = "replaced:retrained"


def test_measurements_with_other_anchors_are_left_out_and_named():
    """The weights in a folder were replaced, and the trial was attacked once more."""
    (trial, rows), *others = runs_of("one", 0.8, 0.6, 0.95)
    trials, measured = [trial, *(row for row, _ in others)], [*anchor_rows(), *(row for _, of in others for row in of)]
    before = rank(schema_tables(trials, [*measured, *rows]), "paper")
    mixed = [row | {"anchor_ids": OTHER} if row["attack"] == TEACHING[0] else row for row in rows]
    after = rank(schema_tables(trials, [*measured, *mixed]), "paper")
    (entry,), (whole,) = after.entries, before.entries
    assert (whole.rank, whole.provisional) == (1, None)
    assert whole.notes == ()
    assert entry.forgetting.value == entry.forgetting.plain == pytest.approx(whole.forgetting.value)
    assert entry.forgetting.seed_values == pytest.approx(whole.forgetting.seed_values)
    assert entry.recovery[TEACHING[0]].value is None
    assert entry.robustness.value is None, "the worst attack is not known"
    assert entry.rank is None and entry.provisional is None
    assert entry.reason
    (note,) = entry.notes
    assert note.startswith(f"seed 1: {sum(row['attack'] == TEACHING[0] for row in rows)} measurements left out")


def test_measurements_that_name_no_anchors_count():
    runs = runs_of("one", 0.8, 0.6, 0.95)
    unnamed = [row | {"anchor_ids": None} for _, rows in runs for row in rows]
    (entry,) = rank(schema_tables([trial for trial, _ in runs], [*anchor_rows(), *unnamed]), "paper").entries
    assert entry.rank == 1
