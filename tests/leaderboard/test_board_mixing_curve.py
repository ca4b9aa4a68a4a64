"""Boards with mixing curves: what is read at the floor, beside what old boards have, and what cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.board import schema
from leaderboard.board.schema import matching
from leaderboard.board.store import Board
from leaderboard.page import render
from leaderboard.ranking.entry import Entry, Matched
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.recovery_table import recovery_table
from leaderboard.ranking.retention_matching import curve_name, floor_of, mixed_name, share_of
from tests.support.board_rows import (
    NONE,
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    item_rows,
    matching_row,
    measurement_row,
    schema_tables,
    with_samples,
)

RTN, RELEARN = TEACHING
GRID = (0.25, 0.5, 0.75)
Rows = list[Row]
Curve = Callable[[float], tuple[float, float, float]]
"""F, R and U by mixing weight."""


def line(f: float, r: float, u: float) -> Curve:
    """F, R and U that change evenly on the way from the target to the unlearned model."""
    return lambda weight: (f * weight, r * weight, 1 - (1 - u) * weight)


def bent(weight: float) -> tuple[float, float, float]:
    """Utility falls below the straight line, crosses 0.9 three times and ends at 0.85; F and R are not straight."""
    heights = np.interp(weight, [0, 0.25, 0.5, 0.75, 1], [1, 0.7, 0.6, 0.95, 0.85])
    return 0.9 * weight**2, 0.7 * weight**2, float(heights)


def along(
    name: str,
    curve: Curve,
    seed: int = 1,
    shares: tuple[float, ...] = GRID,
    attacked: tuple[float, ...] = GRID,
    floor: float = 0.9,
    **changes: Any,
) -> tuple[Row, Rows]:
    """A trial that was measured along its curve, and attacked at some of its weights."""
    trial, rows = entry_rows(name, *curve(1.0), seed, **changes)
    for share in shares:
        _, mixed = entry_rows(name, *curve(share), seed, **changes)
        kept = [row for row in mixed if row["attack"] == NONE or share in attacked]
        rows += [row | {"matching": mixed_name(share)} for row in kept]
    return trial, [*rows, curve_row(trial["trial"], 0.5, floor)]


def curve_row(trial: str, share: float | None, floor: float = 0.9, **changes: Any) -> Row:
    return matching_row(trial, share, **({"matching": curve_name(floor), "split": "test"} | changes))


def one_share(name: str, raw: tuple[float, float, float], mixed: tuple[float, float, float], seed: int = 1) -> Any:
    """A trial as earlier versions measured it."""
    trial, rows = entry_rows(name, *raw, seed)
    _, others = entry_rows(name, *mixed, seed)
    return trial, [*rows, *(row | {"matching": matching(0.9)} for row in others), matching_row(trial["trial"], 0.5)]


def world(*entries: tuple[Row, Rows]) -> tuple[Rows, Rows]:
    attacked_target = [measurement_row("anchors", "target", 0.9, attack=attack) for attack in TEACHING]
    return [trial for trial, _ in entries], [
        *anchor_rows(),
        *attacked_target,
        *(row for _, rows in entries for row in rows),
    ]


def ranked(*entries: tuple[Row, Rows], **options: Any) -> Ranking:
    return rank(schema_tables(*world(*entries)), "paper", **options)


def only(*entries: tuple[Row, Rows], **options: Any) -> Entry:
    [entry] = ranked(*entries, **options).entries
    return entry


@pytest.mark.parametrize(("f", "r", "u"), [(1.0, 0.8, 0.4), (0.9, 0.3, 0.75), (0.5, 0.4, 0.88)])
def test_what_changes_evenly_is_read_exactly(f: float, r: float, u: float):
    at = 0.1 / (1 - u)
    matched = only(along("a", line(f, r, u))).matched
    assert matched.mixing_weight.value == pytest.approx(at) and matched.mixing_weight.plain == pytest.approx(at)
    assert (matched.forgetting.value, matched.robustness.value) == pytest.approx((f * at, r * at))
    assert matched.utility.value == matched.utility.plain == 0.9
    assert matched.score.value == pytest.approx(3 / (1 / (f * at) + 1 / (r * at) + 1 / 0.9))
    assert matched.barrier.value == pytest.approx(0, abs=1e-9)
    recovery = {NONE: 1 - f * at, RTN: 1 - f * at, RELEARN: 1 - r * at}
    assert {name: number.value for name, number in matched.recovery.items()} == pytest.approx(recovery)
    assert matched.worst_attack == RELEARN and matched.kinds == ("curve",) and matched.reason is None


def test_the_last_crossing_counts_and_the_barrier_says_how_far_utility_fell_before():
    matched = only(along("a", bent)).matched
    assert matched.mixing_weight.value == pytest.approx(0.875)
    assert matched.forgetting.value == pytest.approx(np.interp(0.875, [0.75, 1], [0.9 * 0.75**2, 0.9]))
    assert matched.robustness.value == pytest.approx(np.interp(0.875, [0.75, 1], [0.7 * 0.75**2, 0.7]))
    assert matched.barrier.value == pytest.approx((1 + 0.85) / 2 - 0.6)
    low, high = matched.barrier.interval
    assert 0 <= low <= matched.barrier.value <= high <= 1


@pytest.mark.parametrize("u", [0.9, 0.95, 1.0])
def test_an_entry_that_keeps_the_floor_is_read_as_it_is(u: float):
    entry = only(along("a", line(0.9, 0.6, u), attacked=()))
    assert (entry.matched.mixing_weight.value, entry.matched.mixing_weight.plain) == (1, 1)
    for name in ("forgetting", "robustness", "utility", "score", "robustness_harmonic"):
        found, raw = getattr(entry.matched, name), getattr(entry, name)
        assert found.value == pytest.approx(raw.value) and found.plain == raw.plain, name


def test_runs_are_read_each_at_its_own_weight():
    matched = only(*(along("a", line(0.8, 0.8, u), seed) for seed, u in enumerate((0.6, 0.8, 0.95), 1))).matched
    assert matched.mixing_weight.seed_values == pytest.approx((0.25, 0.5, 1.0))
    assert matched.forgetting.seed_values == pytest.approx((0.2, 0.4, 0.8))
    assert matched.utility.value == pytest.approx((0.9 + 0.9 + 0.95) / 3)
    low, high = matched.mixing_weight.interval
    assert 0 <= low < 0.25 and high == 1


def test_entries_are_ranked_and_told_apart_by_what_was_read():
    strong = [along("strong", line(1.0, 0.9, 0.8), seed) for seed in (1, 2, 3)]  # as it is, below the floor
    weak = [along("weak", line(0.5, 0.3, 0.85), seed) for seed in (1, 2, 3)]
    found = ranked(*strong, *weak, matched=True)
    assert [(entry.entry, entry.rank, entry.below_floor) for entry in found.entries] == [
        ("strong", 1, False),
        ("weak", 2, False),
    ]
    assert found.verdict.leader == "strong" and "leads: better than the other" in found.verdict.sentences()[0]
    assert all(entry.matched.replicated["score"].replicates.std() > 0 for entry in found.entries)


def test_the_interval_has_the_luck_of_where_utility_crosses():
    """Knowledge is the same share of every question here: all that moves F is the weight at which it is read."""
    trials, rows = world(along("a", line(0.9, 0.6, 0.7)))
    tables = schema_tables(trials, rows)
    rows = [with_samples(row) for row in rows]
    useful = [row for row in rows if row["headline"] == "utility"]
    known = [row for row in rows if row["headline"] == "knowledge"]
    tables["items"] = schema.to_arrow("items", [*item_rows(known), *item_rows(useful, noise=0.3)])
    matched = rank(tables, "paper").entries[0].matched
    weight, forgetting = matched.mixing_weight, matched.forgetting
    low, high = weight.interval
    assert high - low > 0.05 and low < weight.value < high
    assert forgetting.value == pytest.approx(0.9 * weight.value)
    assert forgetting.interval == pytest.approx((0.9 * low, 0.9 * high), rel=1e-6)
    assert matched.utility.value == 0.9 and matched.utility.interval == pytest.approx((0.9, 0.9), abs=0.01)


def test_without_answers_to_single_questions_the_plain_numbers_are_read():
    trials, rows = world(along("a", line(0.9, 0.6, 0.6)))
    tables = schema_tables(trials, rows)
    [entry] = rank({name: tables[name] for name in ("trials", "measurements")}, "paper").entries
    assert entry.matched.forgetting.value == pytest.approx(0.225)
    assert entry.matched.forgetting.interval is entry.matched.barrier.interval is None
    assert entry.matched.score.value == pytest.approx(3 / (1 / 0.225 + 1 / 0.15 + 1 / 0.9))


def test_answers_that_the_unlearned_weights_lack_cost_a_trial_that_keeps_the_floor_its_intervals_alone():
    trials, rows = world(along("a", line(0.9, 0.6, 0.95), attacked=()))
    rows = [with_samples(row) for row in rows]
    lacking = {row["samples"] for row in rows if row["subject"] == "unlearned" and row["attack"] == RTN}
    assert lacking
    tables = schema_tables(trials, rows)
    tables["items"] = schema.to_arrow("items", [row for row in item_rows(rows) if row["samples"] not in lacking])
    [entry] = rank(tables, "paper").entries
    assert entry.matched.robustness.value == entry.robustness.value == pytest.approx(0.6)
    assert entry.matched.robustness.interval is entry.robustness.interval is None
    assert any(
        "the answers to single questions behind its numbers are not on this board" in note for note in entry.notes
    )


REASONS = {
    "too few": (
        lambda rows: [row for row in rows if share_of(row["matching"]) != 0.5],
        "utility cannot be matched: 4 mixing weights were measured, both ends included, and it takes 5",
    ),
    "not attacked": (
        lambda rows: [row for row in rows if share_of(row["matching"]) != 0.5 or row["attack"] != RTN],
        f"not measured under {RTN} (the weights with a share of 0.5)",
    ),
    "no attack at all": (
        lambda rows: [row for row in rows if share_of(row["matching"]) is None or row["attack"] == NONE],
        f"not measured under {RTN}, {RELEARN} (both weights beside the crossing)",
    ),
    "failed": (
        lambda rows: [
            row | {"value": None, "status": "failed", "reason": "OutOfMemoryError: no memory"}
            if share_of(row["matching"]) == 0.25 and row["attack"] == RELEARN
            else row
            for row in rows
        ],
        f"{RELEARN} failed: OutOfMemoryError: no memory (the weights with a share of 0.25)",
    ),
    "utility unknown": (
        lambda rows: [
            row | {"value": None, "status": "null", "reason": "a value is not finite"}
            if share_of(row["matching"]) == 0.75 and row["headline"] == "utility"
            else row
            for row in rows
        ],
        "utility cannot be matched: utility of the weights with a share of 0.75 is not known: a value is not finite",
    ),
    "raw utility unknown": (
        lambda rows: [
            row | {"value": None, "status": "null", "reason": "a value is not finite"}
            if row["matching"] == "raw" and row["headline"] == "utility"
            else row
            for row in rows
        ],
        "utility cannot be matched: utility is not known: a value is not finite",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_read_has_a_reason(name: str):
    spoil, reason = REASONS[name]
    trial, rows = along("a", line(0.9, 0.6, 0.7))
    found = ranked((trial, spoil(rows)), matched=True)
    [entry] = found.entries
    assert entry.rank is None and entry.reason == entry.matched.score.reason == reason
    assert entry.matched.score.value is None


def test_what_is_unknown_away_from_the_crossing_costs_nothing_but_the_barrier():
    trial, rows = along("a", line(0.9, 0.6, 0.85))  # it crosses at 2/3
    unknown = {"value": None, "status": "null", "reason": "a value is not finite"}
    rows = [
        row | unknown if share_of(row["matching"]) == 0.25 and row["headline"] == "utility" else row for row in rows
    ]
    matched = only((trial, rows)).matched
    assert matched.forgetting.value == pytest.approx(0.6)
    assert matched.barrier.value is None
    assert matched.barrier.reason == "utility of the weights with a share of 0.25 is not known: a value is not finite"


def test_a_curve_belongs_to_the_questions_that_it_was_measured_on():
    trial, on_test = entry_rows("a", 0.9, 0.6, 0.7)
    on_dev = [row | {"split": "dev"} for row in along("a", line(0.9, 0.6, 0.7))[1]]
    anchors = [row | {"split": "dev"} for row in world()[1]]
    rows = [*world()[1], *anchors, *on_dev, *on_test]
    tables = schema_tables([trial], rows)
    assert rank(tables, "paper", "test").entries[0].matched is None
    assert rank(tables, "paper", "dev").entries[0].matched.forgetting.value == pytest.approx(0.3)


def test_a_row_that_says_that_utility_is_unknown_gives_its_reason():
    trial, rows = entry_rows("a", 0.9, 0.6, 0.7)
    why = "utility cannot be matched: 2 mixing weights were measured, both ends included, and it takes 5"
    entry = only((trial, [*rows, curve_row(trial["trial"], None, reason="the anchors are too close")]), matched=True)
    assert entry.reason == why


def test_old_rows_of_one_share_are_ranked_as_they_are():
    """Its numbers are those of an entry whose own weights have these rows; only the words differ."""
    mixed = (0.4, 0.3, 0.91)
    [as_it_is] = ranked(entry_rows("a", *mixed)).entries
    matched = only(one_share("a", (1.0, 1.0, 0.3), mixed)).matched
    for name in ("forgetting", "robustness", "robustness_harmonic", "utility", "score", "recovery", "worst_share"):
        assert getattr(matched, name) == getattr(as_it_is, name), name
    assert (matched.kinds, matched.mixing_weight.value, matched.mixing_weight.interval) == (("share",), 0.5, None)
    assert (matched.barrier.value, matched.barrier.reason) == (None, "no curve was measured")


def test_both_kinds_stand_in_one_table_in_words_that_tell_them_apart():
    old, new = one_share("old", (1.0, 1.0, 0.3), (0.4, 0.3, 0.91)), along("new", line(0.9, 0.6, 0.7))
    for entries, on in (((old,), "dev"), ((new,), "test"), ((old, new), "test (single shares: on dev)")):
        found = ranked(*entries, matched=True)
        assert found.matched_on == on
        assert f"until utility is 0.9 on {on}." in recovery_table(found, matched=True)
    page = render([ranked(old, new)], generated="now")
    assert "mixed back to U = 0.9 on dev: share of the unlearned weights 0.50" in page
    assert "mixed back to U = 0.9 on test: share of the unlearned weights 0.33" in page
    assert page.count("<small>barrier 0.00") == 1 and page.count("barrier of U on the way to the target") == 1


def test_the_curve_of_a_trial_counts_before_its_single_share():
    """An old trial that was measured again."""
    trial, rows = along("a", line(0.9, 0.6, 0.7))
    _, before = one_share("a", (0.9, 0.6, 0.7), (0.4, 0.3, 0.91))
    rows = [*rows, *(row for row in before if row["matching"] == matching(0.9))]
    assert only((trial, rows)).matched == only(along("a", line(0.9, 0.6, 0.7))).matched


def test_a_board_and_its_tables_agree_and_json_has_it_all(tmp_path: Path):
    trials, rows = world(*(along("a", bent, seed) for seed in (1, 2, 3)))
    board = Board(tmp_path)
    fill(board, trials, rows)
    found = rank(board, "paper", matched=True)
    assert found == rank(schema_tables(trials, rows), "paper", matched=True)
    matched = json.loads(json.dumps(found.as_json(), allow_nan=False))["entries"][0]["matched"]
    assert matched["kinds"] == ["curve"] and matched["barrier"]["value"] == pytest.approx(0.325)
    assert len(matched["barrier"]["interval"]) == len(matched["mixing_weight"]["interval"]) == 2
    assert "replicated" not in matched


def test_other_entries_numbers_do_not_change_where_one_has_a_curve():
    plain = entry_rows("plain", 0.9, 0.8, 0.95)
    [alone] = ranked(plain).entries
    beside = next(entry for entry in ranked(plain, along("a", line(0.9, 0.6, 0.7))).entries if entry.entry == "plain")
    assert replace(beside, label=alone.label, pareto=alone.pareto) == alone


def test_a_board_with_any_number_of_weights_is_ranked():
    shares = tuple(number / 128 for number in range(1, 128))
    entry = only(along("a", line(0.9, 0.6, 0.7), shares=shares, attacked=shares), matched=True)
    assert entry.reason == "utility cannot be matched: more than 64 mixing weights were measured"


NUMBERS = (0.0, 1.0, -1.0, 0.5, 5e-324, 1e9, 1e99, -1e99, 1e300, math.inf, -math.inf, math.nan, None)
NAMES = ("raw", curve_name(0.9), curve_name(0.5), matching(0.9), *map(mixed_name, (1e-5, 0.25, 0.5, 0.9999)), "mixed[")
SPOILT = st.fixed_dictionaries(
    {},
    optional={
        "value": st.sampled_from(NUMBERS),
        "stderr": st.sampled_from(NUMBERS),
        "matching": st.sampled_from(NAMES),
        "attack": st.sampled_from([NONE, RTN, "relearn["]),
        "subject": st.sampled_from(["unlearned", "target", "retrained"]),
        "headline": st.sampled_from(["utility", "knowledge", None]),
        "samples": st.sampled_from(["somebody else's", None]),
        "n": st.sampled_from([0, 1, 48, None]),
        "split": st.sampled_from(["dev", "test"]),
    },
)
GOOD = along("good", line(0.9, 0.6, 0.7))


@cache
def alone() -> Matched:
    return only(GOOD).matched


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), SPOILT), min_size=1, max_size=6))
def test_whatever_is_wrong_with_a_curve_costs_no_other_entry_anything(changes: list[tuple[int, dict[str, Any]]]):
    trial, rows = along("bad", bent)
    for place, change in changes:
        rows[place % len(rows)] = {**rows[place % len(rows)], **change}
    rows = [row for row in rows if row["subject"] == "unlearned"]  # an anchor's would be those of all
    for matched in (False, True):
        found = ranked(GOOD, (trial, rows), matched=matched)
        json.dumps(found.as_json(), allow_nan=False)
        [good] = [entry for entry in found.entries if entry.entry == "good"]
        assert good.matched in (alone(), None) or found.matched_floor != 0.9
        for entry in found.entries:
            if entry.matched and entry.matched.score.value is not None:
                numbers = (entry.matched.forgetting, entry.matched.utility, entry.matched.score)
                assert all(0 <= number.value <= 1 for number in numbers)
            elif entry.matched:
                assert entry.matched.score.reason


@given(st.floats(1e-6, 1, exclude_max=True))
def test_a_share_is_read_back_as_it_is_written(share: float):
    name = mixed_name(share)
    found = share_of(name)
    assert found == pytest.approx(share, rel=1e-5) if found is not None else float(f"{share:g}") == 1
    assert floor_of(name) is None and share_of(curve_name(share)) is None


@pytest.mark.parametrize(
    "name",
    [
        *("raw", "mixed[share=0]", "mixed[share=1]", "mixed[share=-0.5]", "mixed[share=nan]", "mixed[share=0.50]"),
        *("mixed[share=1e999]", "mixed[share=0.5", "mixed[share=.5]", "mixed[share=0.5,x=1]", "mixed[share=٠.٥]"),
    ],
)
def test_other_names_have_no_share(name: str):
    assert share_of(name) is None


@pytest.mark.parametrize(
    "name", ["curve[floor=0]", "curve[floor=1.5]", "curve[floor=-1]", "curve[floor=nan]", "curve[]"]
)
def test_a_floor_that_cannot_be_is_none(name: str):
    assert floor_of(name) is None
    trial, rows = along("a", line(0.9, 0.6, 0.7))
    rows = [row | {"matching": name} if row["matching"] == curve_name(0.9) else row for row in rows]
    assert only((trial, rows)).matched is None
