"""Trials of different engines: ranked apart unless mixing is requested, and never with another engine's anchors."""

from __future__ import annotations

import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.board.schema import matching
from leaderboard.board.store import Board
from leaderboard.page import render
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.recovery_table import recovery_table
from tests.support.board_rows import (
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    matching_row,
    schema_tables,
    trial_row,
    unlearned_rows,
)

PLAIN, SWIFT, THIRD = "plain-float32", "swift-float16", "third-int8"

Measured = tuple[Row, list[Row]]


def by(engine: str, entry: str, f: float, r: float, u: float, seed: int = 1, **changes: Any) -> Measured:
    """A trial that one engine measured."""
    trial, rows = entry_rows(entry, f, r, u, seed, **changes)
    return trial, measured_by(engine, rows)


def measured_by(engine: str, rows: list[Row]) -> list[Row]:
    return [row | {"engine": engine} for row in rows]


def world(*measured: Measured, anchors: list[Row] | None = None) -> tuple[list[Row], list[Row]]:
    """Trials, each once, and measurements; by default every engine measured the same numbers on the anchors."""
    found = (
        anchors
        if anchors is not None
        else [r for name in (PLAIN, SWIFT, THIRD) for r in measured_by(name, anchor_rows())]
    )
    trials = {trial["trial"]: trial for trial, _ in measured}
    return list(trials.values()), [*found, *(row for _, rows in measured for row in rows)]


def ranked(*measured: Measured, anchors: list[Row] | None = None, **options: Any) -> Ranking:
    return rank(schema_tables(*world(*measured, anchors=anchors)), "paper", **options)


def by_name(ranking: Ranking) -> dict[str, Entry]:
    return {entry.entry: entry for entry in ranking.entries}


TWO = (by(PLAIN, "a", 0.9, 0.8, 0.95), by(PLAIN, "b", 0.8, 0.7, 0.95), by(SWIFT, "c", 0.7, 0.6, 0.95))


def test_engines_are_apart_unless_they_are_asked_for_together():
    apart = ranked(*TWO)
    assert (apart.group.engines, set(by_name(apart)), apart.mixes_engines) == ((PLAIN,), {"a", "b"}, False)
    assert apart.left_out_by_engine == {SWIFT: 1}
    assert set(by_name(ranked(*TWO, engine=SWIFT))) == {"c"}
    mixed = ranked(*TWO, mix_engines=True)
    assert (mixed.group.engines, mixed.group.trials, mixed.mixes_engines) == ((PLAIN, SWIFT), 3, True)
    engines = {name: entry.engines for name, entry in by_name(mixed).items()}
    assert engines == {"a": (PLAIN,), "b": (PLAIN,), "c": (SWIFT,)}
    assert (mixed.left_out, mixed.left_out_by_engine) == ((), {})
    with pytest.raises(ValueError, match="either the trials of"):
        ranked(*TWO, engine=SWIFT, mix_engines=True)


def test_other_anchors_and_other_data_stay_apart():
    other = [row | {"trial": "others", "anchor_ids": "B"} for row in measured_by(SWIFT, anchor_rows())]
    trials = (
        *TWO,
        by(SWIFT, "elsewhere", 0.9, 0.8, 0.95, anchors="others", anchor_ids="B"),
        by(PLAIN, "later", 0.9, 0.8, 0.95, data="another revision"),
        by(SWIFT, "newer", 0.9, 0.8, 0.95, task_version=2),
    )
    found = ranked(*trials, anchors=[*world()[1], *other], mix_engines=True)
    assert set(by_name(found)) == {"a", "b", "c"}
    left_out = {(g.anchor_ids, g.task_version, g.data, g.engines) for g in found.left_out}
    assert left_out == {
        ("B", 1, "data", (SWIFT,)),
        ("target:retrained", 1, "another revision", (PLAIN,)),
        ("target:retrained", 2, "data", (SWIFT,)),
    }
    assert ranked(*trials, anchors=[*world()[1], *other]).left_out_by_engine == {SWIFT: 1}


def test_trials_that_were_asked_in_another_way_stay_apart():
    chat, plain = {"model": "a/b", "template": "chat-11111111"}, {"model": "a/b", "template": "plain"}
    found = ranked(
        *(by(PLAIN, name, 0.9, 0.8, 0.95, **chat) for name in "ab"),
        by(PLAIN, "c", 0.9, 0.8, 0.95, **plain),
        by(SWIFT, "d", 0.9, 0.8, 0.95, **chat),
        by(PLAIN, "before the column", 0.9, 0.8, 0.95, model="a/b"),
        (*by(PLAIN, "failed", 0.9, 0.8, 0.95, status="failed", anchor_ids=None)[:1], []),
    )
    assert (set(by_name(found)), found.group.template) == ({"a", "b", "failed"}, "chat-11111111")
    assert {group.template: found.group.differences(group) for group in found.left_out} == {
        "plain": ("prompt template",),
        None: ("prompt template",),
        "chat-11111111": (),
    }
    assert found.left_out_by_engine == {SWIFT: 1}


def test_rows_of_the_tiny_model_from_before_the_column_are_ranked_with_those_of_today():
    tiny = {"model": "tiny"}
    found = ranked(
        by(PLAIN, "new", 0.9, 0.8, 0.95, **tiny, template="bare"),
        by(PLAIN, "old", 0.9, 0.8, 0.95, **tiny),
        by(PLAIN, "plain", 0.9, 0.8, 0.95, **tiny, spec='{"model": {"template": "plain"}}'),
        by(PLAIN, "target of one's own", 0.9, 0.8, 0.95, **tiny, spec='{"anchors": {"target": "folder"}}'),
    )
    assert (set(by_name(found)), found.group.template) == ({"new", "old"}, "bare")
    assert {group.template for group in found.left_out} == {"plain", None}


def test_a_trial_is_compared_with_what_its_own_engine_found_in_the_anchors():
    # To the swift engine the target knows 0.5 and the retrained model 0.1, which relearning brings to 0.2.
    trial = trial_row("swift")
    rows = measured_by(SWIFT, unlearned_rows(trial["trial"], 0.2, {TEACHING[0]: 0.2, TEACHING[1]: 0.4}, 0.855))
    anchors = [
        *measured_by(PLAIN, anchor_rows()),
        *measured_by(SWIFT, anchor_rows(target=0.5, taught={TEACHING[1]: 0.2})),
    ]
    found = by_name(ranked(by(PLAIN, "plain", 0.9, 0.8, 0.95), (trial, rows), anchors=anchors, mix_engines=True))
    assert found["plain"].forgetting.value == pytest.approx(0.9)
    swift = found["swift"]
    assert swift.forgetting.value == pytest.approx(1 - (0.2 - 0.1) / (0.5 - 0.1))  # by the other's: 0.875
    assert swift.robustness.value == pytest.approx(1 - (0.4 - 0.2) / (0.5 - 0.1))  # by the other's: 0.625
    # Without anchors of its own engine there is no number; another's would do, and must not.
    alone = ranked(
        by(PLAIN, "plain", 0.9, 0.8, 0.95), (trial, rows), anchors=measured_by(PLAIN, anchor_rows()), mix_engines=True
    )
    assert by_name(alone)["swift"].score.value is None and by_name(alone)["swift"].rank is None


def test_the_retrained_models_utility_is_of_one_engine_too():
    swift = [row | {"value": row["value"] / 2} for row in measured_by(SWIFT, anchor_rows())]
    found = ranked(*TWO, anchors=[*measured_by(PLAIN, anchor_rows()), *swift], mix_engines=True)
    assert found.retrained_utility == pytest.approx(1.0)  # 0.45 / 0.9 over the other's target


def test_of_several_engines_the_one_that_measured_more_is_taken():
    twice = [by(PLAIN, "twice", 0.9, 0.8, 0.95), by(SWIFT, "twice", 0.5, 0.4, 0.95)]
    tied = by_name(ranked(*twice, mix_engines=True))["twice"]
    assert (tied.engines, tied.forgetting.value) == ((PLAIN,), pytest.approx(0.9))
    most = ranked(*twice, by(SWIFT, "c", 0.7, 0.6, 0.95), mix_engines=True)
    assert by_name(most)["twice"].engines == (SWIFT,)
    assert by_name(most)["twice"].forgetting.value == pytest.approx(0.5)
    # Nothing on the table is of the plain engine, so nothing is mixed, and every trial is there once.
    assert (most.group.engines, most.mixes_engines, most.group.trials) == ((SWIFT,), False, 2)


def test_an_entry_is_of_one_engine_where_it_can_be():
    # Most trials of the group are the plain engine's; of this entry both seeds are the swift one's.
    others = [by(PLAIN, name, 0.9, 0.8, 0.95) for name in "cdef"]
    both = [by(PLAIN, "a", 0.9, 0.8, 0.95, 1), by(SWIFT, "a", 0.6, 0.5, 0.95, 1), by(SWIFT, "a", 0.6, 0.5, 0.95, 2)]
    entry = by_name(ranked(*others, *both, mix_engines=True))["a"]
    assert (entry.engines, entry.notes) == ((SWIFT,), ())
    assert entry.forgetting.seed_values == pytest.approx((0.6, 0.6))


def test_an_entry_of_several_engines_says_which_seed_is_whose():
    seeds = [by(PLAIN, "a", 0.9, 0.8, 0.95, 1), by(PLAIN, "a", 0.9, 0.8, 0.95, 2), by(SWIFT, "a", 0.6, 0.5, 0.95, 3)]
    failed = (trial_row("a", 4, status="failed", reason="out of memory"), [])
    entry = by_name(ranked(*seeds, failed, mix_engines=True))["a"]
    assert [seed.engine for seed in entry.seeds] == [PLAIN, PLAIN, SWIFT, None]
    assert entry.engines == (PLAIN, SWIFT)
    assert entry.notes[-1] == f"seeds were measured by different engines: 1, 2 by {PLAIN}; 3 by {SWIFT}"
    assert entry.forgetting.seed_values == pytest.approx((0.9, 0.9, 0.6))


def test_numbers_at_matched_utility_are_of_the_same_engine():
    def both(engine: str, name: str, f: float) -> Measured:
        trial, rows = by(engine, name, f, f, 0.5)
        _, others = by(engine, name, f / 2, f / 2, 0.9)
        others = [row | {"matching": matching(0.9)} for row in others]
        return trial, [*rows, *others, matching_row(trial["trial"], f, engine=engine)]

    found = ranked(both(PLAIN, "a", 0.8), both(SWIFT, "b", 0.6), both(SWIFT, "a", 0.4), mix_engines=True, matched=True)
    assert found.matched_floor == 0.9
    assert {name: entry.engines for name, entry in by_name(found).items()} == {"a": (SWIFT,), "b": (SWIFT,)}
    assert {name: entry.matched.mixing_weight.value for name, entry in by_name(found).items()} == {"a": 0.4, "b": 0.6}
    assert by_name(found)["a"].matched.forgetting.value == pytest.approx(0.2)


def test_the_floor_is_one_that_the_taken_engines_know():
    trial, rows = by(SWIFT, "a", 0.8, 0.8, 0.5)
    matching_rows = [
        matching_row(trial["trial"], 0.5, floor, engine=engine) for floor, engine in ((0.8, SWIFT), (0.7, PLAIN))
    ]
    found = ranked((trial, [*rows, *matching_rows]), by(PLAIN, "b", 0.8, 0.8, 0.5), mix_engines=True)
    assert found.matched_floor == 0.8


def test_what_failed_early_is_shown_once_and_is_nobody_s():
    early = (trial_row("early", status="failed", reason="no model", anchors=None, anchor_ids=None), [])
    found = ranked(*TWO, early, mix_engines=True)
    assert by_name(found)["early"].engines == () and by_name(found)["early"].reason == "failed: no model"
    assert found.group.trials == 4
    assert ranked(*TWO, early).left_out_by_engine == {SWIFT: 1}
    only = ranked(early, mix_engines=True)
    assert (only.group.engines, only.mixes_engines) == ((), False)


_SHARE = st.integers(0, 20).map(lambda n: n / 20)
_NUMBERS = st.tuples(_SHARE, _SHARE, _SHARE).map(lambda n: (max(n[:2]), min(n[:2]), n[2]))
_ENGINES = [names for size in (1, 2, 3) for names in combinations((PLAIN, SWIFT, THIRD), size)]
_TRIALS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(_ENGINES), st.tuples(_NUMBERS, _NUMBERS, _NUMBERS)),
    min_size=1,
    max_size=7,
)


def _measured(chosen: list[Any]) -> list[Measured]:
    return [
        by(engine, name, *numbers, seed)
        for seed, (name, engines, all_numbers) in enumerate(chosen)
        for engine, numbers in zip(engines, all_numbers, strict=False)
    ]


@settings(max_examples=40, deadline=None)
@given(_TRIALS, st.booleans())
def test_with_one_engine_mixing_changes_nothing(chosen: list[Any], matched: bool):
    one = [(name, (SWIFT,), numbers) for name, _, numbers in chosen]
    early = (trial_row("early", status="failed", reason="no model", anchors=None, anchor_ids=None), [])
    found = ranked(*_measured(one), early, matched=matched)
    assert ranked(*_measured(one), early, matched=matched, mix_engines=True) == found


@settings(max_examples=60, deadline=None)
@given(_TRIALS, st.randoms(use_true_random=False))
def test_mixed_numbers_are_those_that_their_engines_have_alone(chosen: list[Any], random: Any):
    # Each engine finds something else in the anchors.
    scales = {PLAIN: 0.9, SWIFT: 0.7, THIRD: 0.5}
    anchors = [row for engine, target in scales.items() for row in measured_by(engine, anchor_rows(target=target))]
    trials, rows = world(*_measured(chosen), anchors=anchors)
    found = rank(schema_tables(trials, rows), "paper", mix_engines=True)
    random.shuffle(trials)
    random.shuffle(rows)
    assert rank(schema_tables(trials, rows), "paper", mix_engines=True) == found
    assert sum(len(entry.seeds) for entry in found.entries) == len(chosen) == found.group.trials
    assert found.group.engines == tuple(sorted({name for entry in found.entries for name in entry.engines}))
    ranked_engines = {engine for _, engines, _ in chosen for engine in engines}
    alone = {name: by_name(rank(schema_tables(trials, rows), "paper", engine=name)) for name in ranked_engines}
    for entry in found.entries:
        for place, seed in enumerate(entry.seeds):
            same = alone[seed.engine][entry.entry]
            there = [other.trial for other in same.seeds].index(seed.trial)
            for field in ("forgetting", "robustness", "utility", "score"):
                assert getattr(entry, field).seed_values[place] == getattr(same, field).seed_values[there]


def test_the_page_says_which_engine_measured_what():
    page = render([ranked(*TWO, mix_engines=True)], generated="now")
    assert f"engines mixed: {PLAIN}, {SWIFT}" in page and "Engines are mixed" in page
    for name, engine in (("a", PLAIN), ("c", SWIFT)):
        [row] = re.findall(rf'<tr id="[^"]*-{name}".*?</tr>', page, re.DOTALL)
        assert f"measured by {engine}" in row
    assert "left out" not in page
    apart = render([ranked(*TWO)], generated="now")
    assert f"test split · {PLAIN}</small>" in apart and "mixed" not in apart and "measured by" not in apart
    assert f"Of {SWIFT} the engine is all that differs" in apart and "--mix-engines" in apart


def test_a_markdown_table_says_so_too():
    found = recovery_table(ranked(*TWO, mix_engines=True))
    assert f"by {SWIFT} |" in found and f"Engines are mixed: {PLAIN}, {SWIFT}." in found
    assert "mixed" not in recovery_table(ranked(*TWO)) and f"by {PLAIN}" not in recovery_table(ranked(*TWO))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    board = Board(tmp_path / "board")
    trials, rows = world(*TWO)
    board.append("trials", trials)
    board.append("measurements", rows)
    return tmp_path


@pytest.fixture
def regrade(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: Path):
    def call(*words: object, code: int = 0) -> str:
        from suite.cli import main

        monkeypatch.setattr(sys, "argv", ["regrade", "board", *map(str, words), "--store", str(store)])
        ended = 0
        try:
            main()
        except SystemExit as end:
            ended = end.code or 0
        printed = capsys.readouterr()
        assert ended == code, printed
        return printed.err if code else printed.out

    return call


def test_the_command_ranks_the_engines_that_it_is_told(regrade):
    apart = regrade("show")
    assert "mixed" not in apart
    [line] = [line for line in apart.splitlines() if line.startswith("left out")]
    assert f"1 trial of {SWIFT}." in line and "--mix-engines" in line and "--engine NAME" in line
    [one] = json.loads(regrade("show", "--engine", SWIFT, "--json"))
    assert [entry["entry"] for entry in one["entries"]] == ["c"] and one["left_out_by_engine"] == {PLAIN: 2}
    mixed = regrade("show", "--mix-engines")
    assert "engines mixed" in mixed and "Engines are mixed" in mixed and SWIFT in mixed and "left out" not in mixed
    [both] = json.loads(regrade("show", "--mix-engines", "--json"))
    assert both["group"]["engines"] == [PLAIN, SWIFT]
    assert {e["entry"]: e["seeds"][0]["engine"] for e in both["entries"]} == {"a": PLAIN, "b": PLAIN, "c": SWIFT}
    for words, shown in ((["--mix-engines"], f"engines mixed: {PLAIN}, {SWIFT}"), (["--engine", SWIFT], f"· {SWIFT}<")):
        page = Path(json.loads(regrade("page", *words, "--json"))["page"])
        assert shown in page.read_text()


@pytest.mark.parametrize("verb", ["show", "page"])
def test_what_cannot_be_ranked_is_refused_with_exit_code_2(regrade, store: Path, verb: str):
    printed = regrade(verb, "--engine", "swift-float32", code=2)
    assert printed.startswith("regrade: --engine swift-float32: ")
    assert f"Did you mean {SWIFT}?" in printed and f"(there are: {PLAIN}, {SWIFT})" in printed
    assert f"(there are: {PLAIN}, {SWIFT})" in regrade(verb, "--engine", "llama", code=2)
    assert "(there are: none)" in regrade(verb, "--engine", SWIFT, "--split", "dev", code=2)
    assert "Leave one of them out" in regrade(verb, "--engine", SWIFT, "--mix-engines", code=2)
    assert not (store / "board.html").exists()


def test_a_task_that_an_engine_did_not_measure_is_left_to_the_others(regrade, store: Path):
    trial, rows = by(PLAIN, "d", 0.9, 0.8, 0.95, task="wide", anchors="wide")
    Board(store / "board").append("trials", [trial])
    Board(store / "board").append("measurements", [row | {"task": "wide", "anchors": "wide"} for row in rows])
    assert [r["task"] for r in json.loads(regrade("show", "--json"))] == ["paper", "wide"]
    assert [r["task"] for r in json.loads(regrade("show", "--engine", SWIFT, "--json"))] == ["paper"]
    assert f"(there are: {PLAIN})" in regrade("show", "--engine", SWIFT, "--task", "wide", code=2)
