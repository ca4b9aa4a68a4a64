"""Numbers at matched utility beside those of the weights as they are, and the ranking by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.board.schema import matching
from leaderboard.board.store import Board
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.retention_matching import chosen_floor, floor_of
from tests.support.board_rows import (
    NONE,
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    matching_row,
    runs_of,
    schema_tables,
    trial_row,
    wide_showcase,
)

RTN, RELEARN = TEACHING
Rows = list[Row]


def both(
    name: str, raw: tuple[float, float, float], mixed: tuple[float, float, float], seed: int = 1, **options: Any
) -> tuple[Row, Rows]:
    """A trial with these F, R and U, and those of weights matched to `floor`, with `share` of its own weights."""
    share, floor = options.pop("share", 0.5), options.pop("floor", 0.9)
    trial, rows = entry_rows(name, *raw, seed, **options)
    _, others = entry_rows(name, *mixed, seed, **options)
    others = [row | {"matching": matching(floor)} for row in others]
    return trial, [*rows, *others, matching_row(trial["trial"], share, floor)]


def runs(
    name: str, raw: tuple[float, float, float], mixed: tuple[float, float, float], **options: Any
) -> list[tuple[Row, Rows]]:
    """As many equal trials as a rank takes."""
    return [both(name, raw, mixed, seed, **options) for seed in (1, 2, 3)]


def ranked(*entries: tuple[Row, Rows], **options: Any) -> Ranking:
    rows = [*anchor_rows(), *(row for _, measured in entries for row in measured)]
    return rank(schema_tables([trial for trial, _ in entries], rows), "paper", **options)


def by_entry(ranking: Ranking) -> dict[str, Entry]:
    return {entry.entry: entry for entry in ranking.entries}


WRECKED = both("wrecked", (1.0, 1.0, 0.3), (0.4, 0.3, 0.91), share=0.2)
SOUND = both("sound", (0.9, 0.8, 0.95), (0.9, 0.8, 0.95), share=1.0)


def test_an_entry_has_the_same_numbers_twice():
    [entry] = ranked(WRECKED).entries
    assert (entry.forgetting.value, entry.utility.value) == pytest.approx((1.0, 0.3))
    there = entry.matched
    assert there.floor == 0.9 and there.mixing_weight.value == 0.2
    assert (there.forgetting.value, there.robustness.value, there.utility.value) == pytest.approx((0.4, 0.3, 0.91))
    assert there.score.value == pytest.approx(3 / (1 / 0.4 + 1 / 0.3 + 1 / 0.91))
    assert {name: number.value for name, number in there.recovery.items()} == pytest.approx(
        {NONE: 0.6, RTN: 0.6, RELEARN: 0.7}
    )
    assert there.robustness_harmonic.value == pytest.approx(3 / (1 / 0.4 + 1 / 0.4 + 1 / 0.3))
    assert there.worst_attack == RELEARN and there.reason is None


def test_rows_of_mixtures_do_not_change_the_numbers_of_the_weights():
    trial, rows = WRECKED
    [alone] = ranked((trial, [row for row in rows if row["matching"] == "raw"])).entries
    [entry] = ranked(WRECKED).entries
    assert alone.matched is None
    for name in ("forgetting", "robustness", "robustness_harmonic", "utility", "score", "recovery", "rank", "reason"):
        assert getattr(entry, name) == getattr(alone, name), name


def test_a_ranking_at_matched_utility_knows_no_floor():
    wrecked, sound = runs("wrecked", (1.0, 1.0, 0.3), (0.4, 0.3, 0.91)), runs("sound", *[(0.9, 0.8, 0.95)] * 2)
    weak = runs("weak", (0.95, 0.9, 0.5), (0.7, 0.6, 0.88), share=0.6)  # on test a little below the floor
    entries = [*wrecked, *sound, *weak]
    raw, matched = ranked(*entries), ranked(*entries, matched=True)
    assert [entry.entry for entry in raw.entries] == ["sound", "weak", "wrecked"]
    assert [entry.below_floor for entry in raw.entries] == [False, True, True]
    assert [entry.entry for entry in matched.entries] == ["sound", "weak", "wrecked"]
    assert [entry.rank for entry in matched.entries] == [1, 2, 3]
    assert not any(entry.below_floor for entry in matched.entries)
    # (0.9, 0.8, 0.95) beats both others once they are of use; as they are, all three are worth something.
    assert [entry.pareto for entry in matched.entries] == [True, False, False]
    assert {entry.entry for entry in raw.entries if entry.pareto} == {"sound", "weak", "wrecked"}
    assert (by_entry(raw)["wrecked"].did_not_forget, by_entry(matched)["wrecked"].did_not_forget) == (False, True)
    assert (raw.matched_floor, matched.matched_floor, matched.matched) == (0.9, 0.9, True)


def test_the_order_is_that_of_the_matched_scores():
    raw = [(0.9, 0.9, 0.95), (0.8, 0.8, 0.95), (0.7, 0.7, 0.95)]
    mixed = [(0.5, 0.5, 0.95), (0.6, 0.6, 0.95), (0.9, 0.9, 0.95)]
    entries = [both(name, one, two) for name, one, two in zip("abc", raw, mixed, strict=True)]
    assert [entry.entry for entry in ranked(*entries).entries] == ["a", "b", "c"]
    assert [entry.entry for entry in ranked(*entries, matched=True).entries] == ["c", "b", "a"]


def test_entries_that_were_not_matched_come_after_with_a_reason():
    plain = runs_of("plain", 0.95, 0.95, 0.99)
    wrecked = runs("wrecked", (1.0, 1.0, 0.3), (0.4, 0.3, 0.91))
    diverged = (trial_row("diverged", status="diverged", reason="the loss is not finite"), [])
    found = ranked(*plain, *wrecked, diverged, matched=True)
    assert [(entry.entry, entry.rank) for entry in found.entries] == [
        *(("wrecked", 1), ("plain", None), ("diverged", None)),
    ]
    assert by_entry(found)["plain"].reason == "not measured at matched utility"
    assert by_entry(found)["diverged"].reason == "diverged: the loss is not finite"
    assert by_entry(ranked(*plain, *wrecked))["plain"].rank == 1
    assert found.verdict.ranked == 1  # the comparisons are of what is ranked here


def test_a_seed_that_was_not_matched_is_missed():
    one, (trial, rows) = both("a", (0.9, 0.8, 1.0), (0.9, 0.8, 1.0), 1), both("a", (0.9, 0.8, 1.0), (0.9, 0.8, 1.0), 2)
    [entry] = ranked(one, (trial, [row for row in rows if row["matching"] == "raw"]), matched=True).entries
    reason = "seed 2: not measured with utility matched to 0.9"
    assert entry.matched.score.reason == entry.matched.mixing_weight.reason == entry.reason == reason
    assert entry.rank is None and entry.score.value is not None


def test_seeds_are_put_together_as_those_of_the_weights_are():
    entries = [both("a", (0.9, 0.8, 1.0), (f, f, 1.0), seed, share=f) for seed, f in enumerate((0.5, 0.6, 0.8), 1)]
    [entry] = ranked(*entries).entries
    assert entry.matched.forgetting.seed_values == pytest.approx((0.5, 0.6, 0.8))
    assert entry.matched.mixing_weight.value == pytest.approx(1.9 / 3)
    assert entry.matched.mixing_weight.seed_values == pytest.approx((0.5, 0.6, 0.8))
    # A mixing weight is no mean over questions, so it has no interval; the numbers of the mixture have.
    assert entry.matched.mixing_weight.interval is None
    low, high = entry.matched.forgetting.interval
    assert low < 0.5 < 0.8 < high


def test_utility_that_cannot_be_matched_says_why():
    trial, rows = entry_rows("a", 0.9, 0.8, 0.95)
    why = matching_row(trial["trial"], None, reason="the anchors are too close")
    [entry] = ranked((trial, [*rows, why]), matched=True).entries
    assert entry.reason == entry.matched.mixing_weight.reason == "utility cannot be matched: the anchors are too close"


def test_an_attack_that_failed_on_the_mixture_costs_only_the_matched_score():
    (trial, rows), *others = runs("sound", (0.9, 0.8, 0.95), (0.9, 0.8, 0.95))
    null = {"value": None, "status": "failed", "reason": "OutOfMemoryError: no memory"}
    rows = [row | null if row["attack"] == RTN and row["matching"] != "raw" else row for row in rows]
    [entry] = ranked((trial, rows), *others).entries
    assert entry.rank == 1 and not entry.failed
    assert entry.matched.score.reason == f"seed 1: {RTN} failed: OutOfMemoryError: no memory"
    assert entry.matched.failed.keys() == {RTN} and entry.matched.forgetting.value == pytest.approx(0.9)


def test_the_floor_of_the_mixtures_is_the_boards_or_the_only_one():
    low, high = ("wrecked", 0.8), ("sound", 0.95)
    entries = [both(name, (0.9, 0.8, 0.99), (0.9, 0.8, 0.99), floor=floor) for name, floor in (low, high)]
    assert [entry.matched for entry in ranked(*entries).entries] == [None, None]  # two kinds, none the board's
    assert ranked(*entries).matched_floor is None
    at = ranked(*entries, floor=0.8)
    assert (by_entry(at)["wrecked"].matched.floor, by_entry(at)["sound"].matched) == (0.8, None)
    assert ranked(entries[0]).entries[0].matched.floor == ranked(entries[0]).matched_floor == 0.8


def test_a_board_and_its_tables_agree_on_mixtures(tmp_path: Path):
    board = Board(tmp_path)
    trials, measurements = wide_showcase()
    fill(board, trials, measurements)
    for matched in (False, True):
        found = rank(board, "wide", matched=matched)
        assert found == rank(schema_tables(trials, measurements), "wide", matched=matched)
        assert all(entry.matched for entry in found.entries)
        as_json = found.as_json()
        assert as_json["matched"] is matched and as_json["entries"][0]["matched"]["floor"] == 0.9


def test_a_later_success_takes_the_place_of_a_failure(tmp_path: Path):
    trials, measurements = wide_showcase()
    failed = [row for row in measurements if row["status"] == "failed"]
    board = Board(tmp_path)
    fill(board, trials, measurements)
    trial = {row["trial"] for row in failed}
    before = [entry for entry in rank(board, "wide").entries if {seed.trial for seed in entry.seeds} & trial]
    assert [entry.rank for entry in before] == [None] and before[0].failed
    fill(board, [], [row | {"value": 0.3, "status": "ok", "reason": None} for row in failed])
    after = [entry for entry in rank(board, "wide").entries if entry.entry == before[0].entry]
    assert after[0].rank and not after[0].failed and after[0].score.value > 0


@given(st.floats(0, 1))
def test_a_floor_is_read_back_as_it_is_written(floor: float):
    name = matching(floor)
    assert matching(floor_of(name)) == name
    assert chosen_floor([floor_of(name)], floor) == floor


@pytest.mark.parametrize("name", ["raw", "utility>=0.9", "uwc[floor=]", "uwc[floor=1e]", "uwc[floor=0.90]", "uwc"])
def test_other_kinds_of_matching_have_no_floor(name: str):
    assert floor_of(name) is None
