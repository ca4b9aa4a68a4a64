"""A trial is ranked by what was measured with the anchors of its row, and whatever else there is is named."""

from __future__ import annotations

from leaderboard.ranking.rank import rank
from tests.support.board_rows import TEACHING, anchor_rows, entry_rows, schema_tables

OTHER = "replaced:retrained"


def test_measurements_with_other_anchors_are_left_out_and_named():
    """The weights in a folder were replaced, and the trial was attacked once more."""
    trial, rows = entry_rows("one", 0.8, 0.6, 0.95)
    before = rank(schema_tables([trial], [*anchor_rows(), *rows]), "paper")
    mixed = [row | {"anchor_ids": OTHER} if row["attack"] == TEACHING[0] else row for row in rows]
    after = rank(schema_tables([trial], [*anchor_rows(), *mixed]), "paper")
    (entry,), (whole,) = after.entries, before.entries
    assert whole.robustness.value is not None
    assert whole.notes == ()
    assert entry.forgetting == whole.forgetting
    assert entry.recovery[TEACHING[0]].value is None
    assert entry.robustness.value is None, "the worst attack is not known"
    assert entry.rank is None
    assert entry.reason
    (note,) = entry.notes
    assert note.startswith(f"{sum(row['attack'] == TEACHING[0] for row in rows)} measurements left out")


def test_measurements_that_name_no_anchors_count():
    trial, rows = entry_rows("one", 0.8, 0.6, 0.95)
    unnamed = [row | {"anchor_ids": None} for row in rows]
    (entry,) = rank(schema_tables([trial], [*anchor_rows(), *unnamed]), "paper").entries
    assert entry.rank == 1
