"""Seeds of attacks and of anchors on a board: means over them count, and how they differ widens intervals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from leaderboard.board.store import Board
from leaderboard.ranking.compare import compare
from leaderboard.ranking.headlines import HeadlineMeasurements
from leaderboard.ranking.levels import ANCHOR_SEEDS, ATTACK_SEEDS, AttackNames
from leaderboard.ranking.rank import Ranking, rank
from tasks import attack_name, attack_seed
from tests.support.board_rows import (
    TASK,
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    measurement_row,
    runs_of,
    tables,
    trial_row,
    unlearned_rows,
    utility_row,
)

RTN, RELEARN = TEACHING
SEEDS = (0, 1, 2)


def seeded(seed: int) -> str:
    """The attack that is random, with a seed, as in rows."""
    return attack_name({"name": "relearn", "samples": 12, "steps": 20, **({"seed": seed} if seed else {})})


def under(trial: str, subject: str, values: dict[int, float | None], **changes: Any) -> list[Row]:
    """What a model knows after the random attack, by the attack's seed."""
    return [measurement_row(trial, subject, value, attack=seeded(seed), **changes) for seed, value in values.items()]


def taught(values: dict[int, float]) -> list[Row]:
    """Further rows of the anchors: what the random attack brings the retrained model to, by its seed."""
    return under("anchors", "retrained", values)


def entry(name: str, known: dict[int, dict[int, float | None]], **changes: Any) -> list[tuple[Row, list[Row]]]:
    """An entry that knows 0.2 and after rounding 0.3; by run and by seed what it knows after the random attack."""
    found = []
    for seed, values in known.items():
        row = trial_row(name, seed, **changes)
        rows = unlearned_rows(row["trial"], 0.2, {RTN: 0.3}, 0.9)
        found.append((row, [*rows, *under(row["trial"], "unlearned", values)]))
    return found


def thrice(values: dict[int, float | None]) -> dict[int, dict[int, float | None]]:
    """The same in three runs."""
    return {run: values for run in (1, 2, 3)}


def ranked(*runs: tuple[Row, list[Row]], anchors: list[Row] | None = None, **options: Any) -> Ranking:
    return rank(tables(*runs, anchors=anchors), TASK.name, **options)


def as_text(ranking: Ranking) -> str:
    return json.dumps([ranking.as_json(), ranking.verdict.sentences()])


@pytest.mark.parametrize(
    ("name", "rest", "seed"),
    [
        ("none", "none", 0),
        ("relearn[seed=2]", "relearn", 2),
        ("relearn[samples=12,seed=2]", "relearn[samples=12]", 2),
        ("relearn[samples=12,seed=10,steps=20]", "relearn[samples=12,steps=20]", 10),
        ("relearn[samples=12,steps=20]", "relearn[samples=12,steps=20]", 0),
        ("relearn[layers=[1, 2],seed=3]", "relearn[layers=[1, 2]]", 3),
        ("relearn[reseed=3]", "relearn[reseed=3]", 0),
        ("relearn[seed=03]", "relearn[seed=03]", 0),
        ("relearn[seed=-3]", "relearn[seed=-3]", 0),
        ("relearn[seed=3", "relearn[seed=3", 0),
        ("seed=3", "seed=3", 0),
    ],
)
def test_an_attack_s_name_tells_its_seed(name, rest, seed):
    assert attack_seed(name) == (rest, seed)


def test_the_mean_over_attack_seeds_is_what_an_attack_brings_back():
    # After the attack the model knows .46 on average and the retrained one .14: (.46 - .14) / .8 = .4.
    runs = entry("a", thrice({0: 0.34, 1: 0.50, 2: 0.54}))
    (one,) = ranked(*runs, anchors=[*anchor_rows(taught={RELEARN: 0.1}), *taught({1: 0.2, 2: 0.12})]).entries
    assert one.recovery[RELEARN].value == pytest.approx(0.4)
    assert one.recovery[RELEARN].plain == pytest.approx(0.4)
    assert one.robustness.value == pytest.approx(0.6)
    assert one.forgetting.value == pytest.approx(1 - 0.1 / 0.8)
    assert one.recovery[RTN].value == pytest.approx(0.25)
    levels = one.replicated["robustness"].levels
    alone = {"attack seed 0": 0.7, "attack seed 1": 0.625, "attack seed 2": 0.475}
    assert levels == {ATTACK_SEEDS: {seed: pytest.approx(value) for seed, value in alone.items()}}
    assert set(one.recovery) == {"none", RTN, RELEARN}, "seeds are no attacks of their own"


def test_the_interval_is_that_of_student_s_t_over_attack_seeds_where_nothing_else_varies():
    runs = entry("a", thrice({0: 0.34, 1: 0.50, 2: 0.54}))
    (one,) = ranked(*runs, anchors=[*anchor_rows(), *taught({1: 0.1, 2: 0.1})]).entries
    shares = np.array([0.34, 0.5, 0.54]) / 0.8 - 0.1 / 0.8
    half = stats.t.ppf(0.975, 2) * shares.std(ddof=1) / math.sqrt(3)
    low, high = one.recovery[RELEARN].interval
    assert (low, high) == (pytest.approx(shares.mean() - half, abs=0.01), pytest.approx(shares.mean() + half, abs=0.01))
    assert one.forgetting.interval == (one.forgetting.value, one.forgetting.value)


def test_one_seed_of_an_attack_is_the_attack_whichever_it_is():
    own = ranked(*entry("a", thrice({0: 0.5})))
    other = ranked(*entry("a", thrice({7: 0.5})), anchors=[*anchor_rows(), *taught({7: 0.1})])
    assert other.entries == own.entries
    assert as_text(other).replace(seeded(7), RELEARN) == as_text(own)


def test_what_the_anchors_went_through_for_others_changes_no_entry():
    runs = [run for name, r in (("a", 0.6), ("b", 0.5)) for run in runs_of(name, 0.9, r, 0.95)]
    alone = ranked(*runs)
    beside = ranked(*runs, anchors=[*anchor_rows(), *taught({1: 0.3, 2: 0.5})])
    assert as_text(beside) == as_text(alone)
    assert all(entry.replicated["score"].levels == {} for entry in beside.entries)


def test_an_entry_with_more_attack_seeds_changes_no_number_of_the_others():
    few = [*entry("a", {1: {0: 0.5}, 2: {0: 0.52}, 3: {0: 0.49}}), *entry("b", thrice({0: 0.4}))]
    many = entry("c", thrice({0: 0.34, 1: 0.50, 2: 0.54}))
    anchors = [*anchor_rows(), *taught({1: 0.2, 2: 0.12})]
    before, after = ranked(*few, anchors=anchors), ranked(*few, *many, anchors=anchors)
    numbers = {one.entry: one for one in after.entries}
    for one in before.entries:
        assert numbers[one.entry].score == one.score
        assert numbers[one.entry].recovery == one.recovery
    assert after.verdict.ranked == 3


def test_attacks_with_other_seeds_in_the_runs_of_an_entry_count_where_all_runs_have_them():
    runs = entry("a", {1: {0: 0.3, 1: 0.5, 2: 0.4}, 2: {0: 0.4, 1: 0.5}, 3: {1: 0.6, 0: 0.5, 5: 0.1}})
    (one,) = ranked(*runs, anchors=[*anchor_rows(), *taught({1: 0.1, 2: 0.1, 5: 0.1})]).entries
    found = one.replicated["robustness"].levels[ATTACK_SEEDS]
    shares = {"attack seed 0": (0.2 + 0.3 + 0.4) / 3, "attack seed 1": (0.4 + 0.4 + 0.5) / 3}
    assert found == {seed: pytest.approx(1 - value / 0.8) for seed, value in shares.items()}
    assert one.recovery[RELEARN].value == pytest.approx((0.3 + 0.35 + 0.3) / 3 / 0.8)


def test_an_attack_that_failed_with_one_seed_has_failed():
    runs = entry("a", thrice({0: 0.34, 1: 0.50}))
    for _, rows in runs:
        for row in rows:
            if row["attack"] == seeded(1):
                row |= {"value": None, "status": "failed", "reason": "OutOfMemoryError: no memory"}
    (one,) = ranked(*runs, anchors=[*anchor_rows(), *taught({1: 0.1})]).entries
    assert one.failed == {RELEARN: "failed: seed 1: OutOfMemoryError: no memory (seed 1)"}
    assert one.recovery[RELEARN].value is None
    assert one.score.value is None
    assert f"{RELEARN} failed: seed 1: OutOfMemoryError" in one.reason


def test_a_seed_that_the_retrained_model_was_not_attacked_with_leaves_no_number():
    (one,) = ranked(*entry("a", thrice({0: 0.34, 1: 0.50}))).entries
    assert one.score.value is None
    assert f"was not measured on the retrained model under {seeded(1)} at 0" in one.reason


def test_attacks_of_a_set_that_differ_in_their_seed_stay_two_attacks():
    def names(*measured: int) -> AttackNames:
        model = HeadlineMeasurements.from_rows("unlearned", under("trial", "unlearned", dict.fromkeys(measured, 0.5)))
        return AttackNames(["none", seeded(1), seeded(2)], model.attacks)

    both = {"none": ("none",), seeded(1): (seeded(1),), seeded(2): (seeded(2),)}
    assert names().of(None) == names(1, 2).of(None) == both
    assert names(1, 2).seeds == ()
    assert names(1, 2, 5).of(None) == both | {seeded(n): (seeded(n), seeded(5)) for n in (1, 2)}


def test_two_entries_are_paired_by_attack_seed():
    anchors = [*anchor_rows(), *taught({1: 0.1, 2: 0.1})]
    together = {0: 0.3, 1: 0.5, 2: 0.4}  # a seed moves both entries alike
    one = entry("a", thrice({seed: value + 0.08 for seed, value in together.items()}))
    other = entry("b", thrice(together))
    found = compare(tables(*one, *other, anchors=anchors), TASK.name, "test", ["a", "b"])[0]
    line = next(line for line in found.lines if line.name == RELEARN)
    assert line.difference.estimate == pytest.approx(0.1)
    assert line.difference.p < 1e-6, "the seeds cancel"
    assert "Attack seeds are paired (3)." in found.sentences()
    assert found.as_json()["levels"] == ["Attack seeds are paired (3)."]
    # With other seeds each entry brings its own deviation.
    moved = entry("b", thrice({seed + 3: value for seed, value in together.items()}))
    anchors += taught({3: 0.1, 4: 0.1, 5: 0.1})
    found = compare(tables(*one, *moved, anchors=anchors), TASK.name, "test", ["a", "b"])[0]
    line = next(line for line in found.lines if line.name == RELEARN)
    assert line.difference.estimate == pytest.approx(0.1)
    assert line.difference.p > 0.05
    assert "Attack seeds are others (3 and 3) and are not paired." in found.sentences()


def test_a_comparison_without_several_seeds_says_nothing_of_them():
    found = compare(tables(*runs_of("a", 0.9, 0.6, 0.95), *runs_of("b", 0.9, 0.5, 0.95)), TASK.name, "test", ["a", "b"])
    assert "levels" not in found[0].as_json()
    assert len(found[0].sentences()) == 2


def test_questions_that_moved_are_means_over_attack_seeds(tmp_path: Path):
    anchors = [*anchor_rows(), *taught({1: 0.1, 2: 0.1})]
    runs = [*entry("a", {1: {0: 0.3, 1: 0.5, 2: 0.4}}), *entry("b", {1: {0: 0.6, 1: 0.7, 2: 0.8}})]
    board = Board(tmp_path / "board")
    fill(board, [row for row, _ in runs], [*anchors, *(row for _, rows in runs for row in rows)])
    (found,) = compare(board, TASK.name, "test", ["a", "b"])
    items = [item for item in found.items if item.attack == RELEARN]
    assert len(items) == 48
    assert np.mean([item.one for item in items]) == pytest.approx(0.4)
    assert np.mean([item.other for item in items]) == pytest.approx(0.7)


# Anchors of several seeds.

PAIRS = ("anchors", "others")
SCALE = {"anchors": ",".join(PAIRS), "anchor_ids": "target,target2:retrained,retrained2"}


def pairs_of_anchors(targets: tuple[float, float], retrained: tuple[float, float]) -> list[Row]:
    return [
        *anchor_rows(targets[0], retrained[0]),
        *(
            row | {"trial": "others", "anchors": "others", "anchor_ids": "target2:retrained2"}
            for row in anchor_rows(targets[1], retrained[1])
        ),
    ]


def scaled(runs: list[tuple[Row, list[Row]]]) -> list[tuple[Row, list[Row]]]:
    return [(row | SCALE, [one | SCALE for one in rows]) for row, rows in runs]


def test_the_scale_is_the_mean_over_pairs_of_anchors():
    # The unit is .7 = (.9 + .8) / 2 - (.1 + .2) / 2, the zero .15 under every attack.
    anchors = pairs_of_anchors((0.9, 0.8), (0.1, 0.2))
    (one,) = ranked(*scaled(entry("a", thrice({0: 0.5}))), anchors=anchors).entries
    assert one.recovery[RELEARN].value == pytest.approx(0.35 / 0.7)
    assert one.recovery[RELEARN].plain == pytest.approx(0.35 / 0.7)
    assert one.forgetting.value == pytest.approx(1 - 0.05 / 0.7)
    alone = {"anchors 1": 1 - 0.4 / 0.8, "anchors 2": 1 - 0.3 / 0.6}
    found = one.replicated["robustness"].levels
    assert found == {ANCHOR_SEEDS: {pair: pytest.approx(value) for pair, value in alone.items()}}
    assert found[ANCHOR_SEEDS].keys() == {"anchors 1", "anchors 2"}


def test_another_scale_is_another_group():
    one = runs_of("a", 0.9, 0.6, 0.95)
    anchors = pairs_of_anchors((0.9, 0.8), (0.1, 0.2))
    ranking = ranked(*one, *scaled(runs_of("b", 0.9, 0.5, 0.95, 4)), anchors=anchors)
    assert [len(one.seeds) for one in ranking.entries] == [4]
    assert [group.trials for group in ranking.left_out] == [3]
    assert as_text(ranked(*one, anchors=anchors)) == as_text(ranked(*one))


def test_chance_is_the_zero_of_all_pairs():
    anchors = [row for row in pairs_of_anchors((0.9, 0.7), (0.1, 0.2)) if row["subject"] == "target"]
    runs = scaled(entry("a", thrice({0: 0.4})))
    ids = {"anchor_ids": "target,target2:chance"}
    (one,) = ranked(*((row | ids, [one | ids for one in rows]) for row, rows in runs), anchors=anchors).entries
    assert one.forgetting.value == pytest.approx(1 - 0.2 / 0.8)
    assert one.recovery[RELEARN].value == pytest.approx(0.4 / 0.8)


def test_a_pair_that_was_not_measured_leaves_no_number():
    (one,) = ranked(*scaled(entry("a", thrice({0: 0.5}))), anchors=anchor_rows()).entries
    assert one.score.value is None
    assert "was not measured on the" in one.reason


def test_too_many_seeds_are_not_computed_with():
    many = {seed: 0.5 for seed in range(101)}
    (one,) = ranked(*entry("a", {1: many}), anchors=[*anchor_rows(), *taught(dict.fromkeys(many, 0.1))]).entries
    assert one.notes == ("not compared: its attacks have more than 100 seeds",)
    runs = entry("a", {1: {0: 0.5}})
    named = [(row | {"anchors": ",".join(["anchors"] * 20_000)}, rows) for row, rows in runs]
    (one,) = ranked(*named).entries
    assert one.score.value is None


def test_both_levels_stand_beside_each_other():
    anchors = pairs_of_anchors((0.9, 0.8), (0.1, 0.2))
    anchors += [row | {"trial": "others", "anchors": "others", "anchor_ids": "target2:retrained2"} for row in
                under("anchors", "retrained", {1: 0.3, 2: 0.2})]  # fmt: skip
    anchors += taught({1: 0.2, 2: 0.1})
    known = {0: 0.3, 1: 0.5, 2: 0.55}
    runs = [*entry("a", thrice(known)), *entry("b", thrice({0: 0.3, 1: 0.45}))]
    ranking = ranked(*scaled(runs), anchors=anchors)
    numbers = {one.entry: one for one in ranking.entries}
    zero = (0.15 + 0.25 + 0.15) / 3
    assert numbers["a"].recovery[RELEARN].value == pytest.approx((0.45 - zero) / 0.7)
    levels = numbers["a"].replicated["robustness"].levels
    assert levels[ATTACK_SEEDS]["attack seed 1"] == pytest.approx(1 - (0.5 - 0.25) / 0.7)
    assert levels[ANCHOR_SEEDS]["anchors 2"] == pytest.approx(1 - (0.45 - (0.2 + 0.3 + 0.2) / 3) / 0.6)
    (found,) = compare(tables(*scaled(runs), anchors=anchors), TASK.name, "test", ["a", "b"])
    assert found.sentences()[2:] == [
        "Anchor seeds are paired (2).",
        "Attack seeds are others (3 and 2) and are not paired.",
    ]
    assert ranking.null_entries[0].forgetting.value == 0


def test_the_target_s_utility_is_the_mean_s_unit():
    anchors = pairs_of_anchors((0.9, 0.9), (0.1, 0.1))
    for row in anchors:
        if row["trial"] == "others" and row["headline"] == "utility" and row["subject"] == "target":
            row["value"] = 0.7
    runs = scaled(entry("a", thrice({0: 0.5})))
    for row, rows in runs:
        rows[:] = [one for one in rows if one["headline"] != "utility"]
        rows.append(utility_row(row["trial"], "unlearned", 0.6) | SCALE)
    (one,) = ranked(*runs, anchors=anchors).entries
    assert one.utility.value == pytest.approx(0.6 / 0.8)


def test_entry_rows_of_before_are_on_the_scale_of_one_pair():
    row, rows = entry_rows("a", 0.9, 0.6, 0.95)
    assert "," not in row["anchors"] + row["anchor_ids"]
    (one,) = ranked((row, rows)).entries
    assert one.robustness.value == pytest.approx(0.6)
    assert one.replicated["robustness"].levels == {}
