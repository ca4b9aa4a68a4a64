"""The ranking: who leads, who shares a rank, who is left out, and that the order of rows is nobody's business."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import scipy.stats

from leaderboard.board import schema
from leaderboard.board.store import Board, BoardError
from leaderboard.ranking.entry import Entry
from leaderboard.ranking.rank import Ranking, rank
from tests.support.board_rows import (
    ATTACKS,
    ENGINE,
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    item_rows,
    runs_of,
    showcase,
    tables,
    trial_row,
    unlearned_rows,
)


def ranked(*entries: tuple[Row, list[Row]], anchors: list[Row] | None = None, **options: Any) -> Ranking:
    return rank(tables(*entries, anchors=anchors), "paper", **options)


def by_name(ranking: Ranking) -> dict[str, Entry]:
    return {entry.entry: entry for entry in ranking.entries}


def test_a_trial_is_measured_against_its_own_anchors():
    # Recovery is what comes back beyond what relearning teaches the retrained model: 0.74 - 0.34, over 0.9 - 0.1.
    trials = [trial_row("a", seed) for seed in (1, 2, 3)]
    attacked = {TEACHING[0]: 0.42, TEACHING[1]: 0.74}
    runs = [(trial, unlearned_rows(trial["trial"], 0.3, attacked, 0.855)) for trial in trials]
    [entry] = ranked(*runs, anchors=anchor_rows(taught={TEACHING[1]: 0.34})).entries
    assert entry.forgetting.value == pytest.approx(0.75)
    assert entry.robustness.value == pytest.approx(0.5)
    assert entry.utility.value == pytest.approx(0.95)
    assert entry.score.value == pytest.approx(3 / (1 / 0.75 + 1 / 0.5 + 1 / 0.95))
    assert [entry.recovery[name].value for name in ATTACKS] == pytest.approx([0.25, 0.4, 0.5])
    assert (entry.worst_attack, entry.rank, entry.pareto) == (TEACHING[1], 1, True)


def test_utility_comes_before_the_score():
    found = ranked(
        *runs_of("wrecked", 1.0, 1.0, 0.5),
        *runs_of("weak", 0.6, 0.2, 0.95),
        *runs_of("good", 0.9, 0.8, 0.95),
        entry_rows("single", 0.95, 0.95, 0.99),
        (trial_row("broken", status="failed", reason="out of memory"), []),
    )
    assert [entry.entry for entry in found.entries] == ["good", "weak", "wrecked", "single", "broken"]
    assert [entry.rank for entry in found.entries] == [1, 2, 3, None, None]
    assert [entry.below_floor for entry in found.entries] == [False, False, True, False, False]
    assert found.entries[3].provisional == "provisional: one run, and a rank takes 3"
    assert found.entries[4].reason == "failed: out of memory"
    assert not ranked(entry_rows("wrecked", 1.0, 1.0, 0.5), floor=0.5).entries[0].below_floor


def test_scores_that_cannot_be_told_apart_share_a_rank_but_do_not_chain():
    # Paired by seed, the first and the third differ by 0.1 in every run. The second's runs go up and down against
    # theirs: 0.05 with a deviation of 0.035 is 2.5 standard errors of a mean of three, and it would take 4.3.
    shares = {"one": 0.9, "two": 0.85, "three": 0.8, "four": 0.3}
    away = {"one": (-0.02, 0.02, 0.0), "two": (0.0, -0.02, 0.02), "three": (-0.02, 0.02, 0.0), "four": (0.0, 0.0, 0.0)}
    rows = [
        entry_rows(name, share + shift, share + shift, 1.0, seed)
        for name, share in shares.items()
        for seed, shift in enumerate(away[name], 1)
    ]
    found = ranked(*rows)
    assert [entry.entry for entry in found.entries] == list(shares)
    assert [entry.rank for entry in found.entries] == [1, 1, 2, 4]
    assert found.verdict.leader is None and found.verdict.first == "one"
    assert found.verdict.ties == {"one": ("two",), "two": ("three",)}
    exact = [run for name, share in shares.items() for run in runs_of(name, share, share, 1.0)]
    assert [entry.rank for entry in ranked(*exact).entries] == [1, 2, 3, 4]
    assert ranked(*exact).verdict.leader == "one"


def test_robustness_of_what_was_not_forgotten_is_marked():
    found = by_name(ranked(*runs_of("kept", 0.3, 0.3, 1.0), *runs_of("gone", 0.6, 0.3, 1.0)))
    assert found["kept"].did_not_forget and not found["gone"].did_not_forget


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_seeds_are_averaged_and_their_interval_is_students(seeds: int):
    # All models answer in proportion here, so that other questions change nothing and the runs are all that varies.
    shares = [0.6, 0.7, 0.65, 0.8, 0.75][:seeds]
    found = ranked(*(entry_rows("a", share, share, 0.95, seed) for seed, share in enumerate(shares, 1)))
    [entry] = found.entries
    assert entry.forgetting.seed_values == pytest.approx(shares)
    assert [entry.forgetting.value, entry.forgetting.plain] == pytest.approx([statistics.fmean(shares)] * 2)
    assert [seed.seed for seed in entry.seeds] == list(range(1, seeds + 1)) and entry.statuses == {"ok": seeds}
    if seeds == 1:
        assert entry.forgetting.interval == pytest.approx((0.6, 0.6))
    else:
        error = statistics.stdev(shares) / math.sqrt(seeds)
        low, high = scipy.stats.t.interval(0.95, seeds - 1, loc=statistics.fmean(shares), scale=error)
        assert entry.forgetting.interval == pytest.approx((max(low, 0.0), min(high, 1.0)), abs=0.01 * (high - low))


def noisy(*entries: tuple[Row, list[Row]], noise: float = 0.3) -> dict[str, pa.Table]:
    """A world in which every model answers each question with some luck."""
    found = tables(*entries)
    rows = found["measurements"].to_pylist()
    return found | {"items": schema.to_arrow("items", item_rows(rows, noise))}


def test_more_seeds_do_not_shrink_what_other_questions_change():
    one = rank(noisy(entry_rows("a", 0.7, 0.7, 0.95)), "paper").entries[0]
    three = rank(noisy(*runs_of("a", 0.7, 0.7, 0.95)), "paper").entries[0]
    # The anchors' luck with these questions is in every run. Without it three runs' own would be 1.7 times smaller.
    assert 0.02 < three.forgetting.margin <= one.forgetting.margin
    assert three.forgetting.margin > 0.7 * one.forgetting.margin
    exact = ranked(*runs_of("a", 0.7, 0.7, 0.95)).entries[0]
    assert exact.forgetting.margin == pytest.approx(0, abs=1e-6)


def test_a_failed_seed_is_not_counted_and_a_diverged_one_costs_the_rank():
    sound = [run for name in ("failing", "diverging") for run in runs_of(name, 0.8, 0.7, 0.95)]
    failed = (trial_row("failing", 4, status="failed", reason="out of memory"), [])
    diverged = (trial_row("diverging", 4, status="diverged", reason="the loss is not finite"), [])
    found = by_name(ranked(*sound, failed, diverged))
    assert found["failing"].rank == 1
    assert found["failing"].score.seed_values == pytest.approx([3 / (1 / 0.8 + 1 / 0.7 + 1 / 0.95)] * 3)
    assert found["failing"].notes == ("seed 4 failed: out of memory",)
    assert found["failing"].statuses == {"failed": 1, "ok": 3}
    assert found["diverging"].rank is None
    assert found["diverging"].reason == "seed 4 diverged: the loss is not finite"
    # A failed run is none: with two others the entry has no rank.
    one_failed = ranked(*sound[:2], (trial_row("failing", 3, status="failed", reason="out of memory"), []))
    assert one_failed.entries[0].provisional == "provisional: two runs, and a rank takes 3"


def test_a_seed_whose_weights_never_moved_is_told_beside_the_entry():
    (trial, rows), *others = runs_of("still", 0.8, 0.7, 0.95)
    reason = "every weight is still the target's: nothing was unlearned"
    found = by_name(ranked(({**trial, "status": "unchanged", "reason": reason}, rows), *others))["still"]
    assert (found.rank, found.reason) == (1, None)
    assert found.notes == (f"seed 1 unchanged: {reason}",)


def test_a_seed_without_a_number_leaves_none_for_the_entry():
    one, (trial, rows), three = runs_of("a", 0.8, 0.7, 0.95)
    [entry] = ranked(one, (trial, [row for row in rows if row["attack"] != TEACHING[1]]), three).entries
    assert entry.score.value is None and entry.rank is None and entry.worst_attack is None
    assert entry.robustness.reason == entry.reason == f"seed 2: not measured under {TEACHING[1]}"
    assert entry.provisional is None
    assert entry.robustness.seed_values == (pytest.approx(0.7), None, pytest.approx(0.7))
    assert entry.forgetting.value == pytest.approx(0.8)


def test_what_a_search_did_not_measure_is_counted_unless_another_seed_was_measured():
    finished = [(trial_row(name, seed), []) for name, seed in (("searched", 1), ("searched", 2), ("picked", 2))]
    found = ranked(entry_rows("picked", 0.9, 0.9, 1.0, 1), *runs_of("whole", 0.5, 0.4, 1.0), *finished)
    assert [(entry.entry, entry.rank) for entry in found.entries] == [("whole", 1), ("picked", None)]
    assert found.entries[1].forgetting.reason == "seed 2: not measured under none"
    assert found.unmeasured == 1


def test_costs_are_means_over_seeds():
    costs = [{"value_calls": 100, "unlearn_seconds": 2.0}, {"value_calls": 201, "unlearn_seconds": None}]
    rows = [entry_rows("a", 0.8, 0.7, 0.95, seed, **cost) for seed, cost in enumerate(costs, 1)]
    [entry] = ranked(*rows).entries
    assert (entry.cost.value_calls, entry.cost.gradient_calls, entry.cost.unlearn_seconds) == (150.5, 60, None)


def test_the_pareto_front_is_what_nobody_beats():
    points = {"all": (0.9, 0.8, 0.9), "worse": (0.9, 0.7, 0.9), "useful": (0.5, 0.4, 1.0), "twin": (0.9, 0.8, 0.9)}
    found = ranked(*(entry_rows(name, *point) for name, point in points.items()))
    front = {entry.entry for entry in found.entries if entry.pareto}
    assert front == {"all", "useful", "twin"}


def _of_group(name: str, anchors: str, engine: str = ENGINE, **changes: Any) -> tuple[Row, list[Row]]:
    trial, rows = entry_rows(name, 0.8, 0.7, 0.95, anchors=anchors, anchor_ids=anchors, **changes)
    return trial, [row | {"engine": engine} for row in rows]


def _anchors_of(*recipes: tuple[str, str]) -> list[Row]:
    return [row | {"trial": name, "engine": engine} for name, engine in recipes for row in anchor_rows()]


def test_other_anchors_and_other_engines_are_left_out_and_counted():
    world = tables(
        *(_of_group(name, "A") for name in "ab"),
        _of_group("c", "B"),
        _of_group("d", "A", "vllm/bfloat16"),
        _of_group("e", "A", data="another revision"),
        (trial_row("early", status="failed", reason="no model", anchors=None, anchor_ids=None), []),
        anchors=_anchors_of(("A", ENGINE), ("B", ENGINE), ("A", "vllm/bfloat16")),
    )
    found = rank(world, "paper")
    assert {entry.entry for entry in found.entries} == {"a", "b", "early"}
    assert (found.group.anchor_ids, found.group.engines, found.group.trials) == ("A", (ENGINE,), 3)
    left_out = [(g.anchor_ids, *g.engines, g.data, g.trials) for g in found.left_out]
    assert sorted(left_out) == [
        *(("A", ENGINE, "another revision", 1), ("A", "vllm/bfloat16", "data", 2), ("B", ENGINE, "data", 2)),
    ]
    assert {entry.entry for entry in rank(world, "paper", anchor_ids="B").entries} == {"c", "early"}
    assert {entry.entry for entry in rank(world, "paper", engine="vllm/bfloat16").entries} == {"d", "early"}
    with pytest.raises(BoardError, match=r"no trial with engine llama, anchors any\. There is: engine transformers"):
        rank(world, "paper", engine="llama")


def test_only_raw_headlines_of_the_split_are_read():
    trial, rows = entry_rows("a", 0.8, 0.7, 0.95)
    others = {"split": "dev", "matching": "utility>=0.9", "subject": "unlearned@10"}
    flattering = [row | {name: other, "value": 0.1} for row in rows for name, other in others.items()]
    assert ranked((trial, rows)).entries == ranked((trial, [*rows, *flattering])).entries


def test_entries_are_called_by_what_tells_them_apart():
    zo = {"optimizer": "hybrid", "grade": "hybrid", "zo_samples": 8}
    found = ranked(
        entry_rows("a", 0.9, 0.8, 1.0, **zo, zo_ratio=0.25),
        entry_rows("b", 0.9, 0.8, 1.0, **zo, zo_ratio=0.5),
        entry_rows("c", 0.9, 0.8, 1.0, smoothing="sam"),
        entry_rows("d", 0.9, 0.8, 1.0, spec='{"optimizer": {"lr": 0.001}, "seed": 1}'),
        entry_rows("e", 0.9, 0.8, 1.0, spec='{"optimizer": {"lr": 0.01}, "seed": 2}'),
        entry_rows("twin-aaaaaaaa", 0.9, 0.8, 1.0, objective="rmu", spec="not json"),
        entry_rows("twin-bbbbbbbb", 0.9, 0.8, 1.0, objective="rmu", spec="not json"),
        entry_rows("alone", 0.9, 0.8, 1.0, optimizer="sgd", spec='{"optimizer": {"lr": 7}}'),
    )
    assert {entry.entry: entry.label for entry in found.entries} == {
        "a": "hybrid · npo · zo 25%",
        "b": "hybrid · npo · zo 50%",
        "c": "adamw · npo · sam",
        "d": "adamw · npo · lr=0.001",
        "e": "adamw · npo · lr=0.01",
        "twin-aaaaaaaa": "adamw · rmu · twin-aaa",
        "twin-bbbbbbbb": "adamw · rmu · twin-bbb",
        "alone": "sgd · npo",
    }


def test_a_spec_of_any_depth_does_not_stop_the_board():
    deep = "[" * 100_000
    rows = [entry_rows(name * 8, 0.9, 0.8, 1.0, spec=spec) for name, spec in (("a", deep), ("b", "{}"))]
    assert len(ranked(*rows).entries) == 2


def test_a_board_and_its_tables_rank_alike(tmp_path: Path):
    board = Board(tmp_path)
    trials, measurements = showcase()
    fill(board, trials, measurements)
    found = rank(board, "paper")
    assert found == rank({name: board.read(name) for name in ("trials", "measurements", "items")}, "paper")
    assert {entry.rank is None for entry in found.entries} == {True, False}
    assert {entry.grade for entry in found.entries} == {"first", "second", "compressed", "zeroth", "hybrid"}
    text = json.dumps(found.as_json(), allow_nan=False)
    assert [entry["rank"] for entry in json.loads(text)["entries"]] == [entry.rank for entry in found.entries]


def test_a_board_without_trials_is_an_empty_ranking(tmp_path: Path):
    found = rank(Board(tmp_path), "paper")
    assert found.entries == () and found.group is None
    json.dumps(found.as_json(), allow_nan=False)


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no such task: papers\. There are: .*paper"):
        rank(tables(), "papers")
    with pytest.raises(ValueError, match=r"no attack set paper-0\. It has: .*paper-1"):
        rank(tables(), "paper", attack_set="paper-0")
