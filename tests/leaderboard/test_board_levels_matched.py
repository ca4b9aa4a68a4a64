"""Numbers at matched utility, read along a curve, with several seeds of attacks and of anchors."""

from __future__ import annotations

import pytest

from leaderboard.ranking.entry import Matched
from leaderboard.ranking.levels import ANCHOR_SEEDS, ATTACK_SEEDS
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.retention_matching import share_of
from tests.leaderboard.test_board_levels import PAIRS, RELEARN, SCALE, seeded
from tests.leaderboard.test_board_mixing_curve import Rows, along, line, one_share, world
from tests.support.board_rows import Row, schema_tables

F, R, U = 0.9, 0.6, 0.8
AT = 0.5
"""Where utility is .9 on the way to .8."""
MORE = 0.16
"""How much more of the unlearned model's knowledge the second seed brings back, of .8 between the anchors."""


def weight_of(row: Row) -> float:
    return 0.0 if row["subject"] != "unlearned" else 1.0 if row["matching"] == "raw" else share_of(row["matching"])


def with_second_seed(rows: Rows) -> Rows:
    """The same, and under the random attack with another seed the more knowledge the larger the mixing weight."""
    return rows + [
        row | {"attack": seeded(1), "value": row["value"] + MORE * weight_of(row), "samples": None}
        for row in rows
        if row["attack"] == RELEARN
    ]


def with_pairs(rows: Rows, useful: float) -> Rows:
    """Two pairs of anchors that differ in their target's utility alone."""
    of_anchors = [row for row in rows if row["subject"] != "unlearned"]
    others = [row | {"trial": PAIRS[1], "anchors": PAIRS[1], "anchor_ids": "target2:retrained2"} for row in of_anchors]
    for row in others:
        if row["subject"] == "target" and row["headline"] == "utility":
            row["value"] = useful
    return [*of_anchors, *others, *(row | SCALE for row in rows if row["subject"] == "unlearned")]


def matched(trials: Rows, rows: Rows) -> tuple[Ranking, Matched]:
    ranking = rank(schema_tables(trials, rows), "paper", matched=True)
    [entry] = ranking.entries
    return ranking, entry.matched


def entry(runs: int = 3) -> tuple[Rows, Rows]:
    return world(*(along("a", line(F, R, U), seed) for seed in range(1, runs + 1)))


def test_numbers_are_read_from_means_over_attack_seeds_with_each_seed_alone_at_the_same_weights():
    trials, rows = entry()
    ranking, found = matched(trials, with_second_seed(rows))
    assert found.mixing_weight.value == pytest.approx(AT)
    assert found.robustness.value == pytest.approx((R - MORE / 0.8 / 2) * AT, abs=1e-6)
    assert found.robustness.plain == pytest.approx((R - MORE / 0.8 / 2) * AT)
    assert found.forgetting.value == pytest.approx(F * AT, abs=1e-6)
    levels = found.replicated["robustness"].levels
    alone = {"attack seed 0": R * AT, "attack seed 1": (R - MORE / 0.8) * AT}
    assert levels == {ATTACK_SEEDS: {seed: pytest.approx(value, abs=1e-6) for seed, value in alone.items()}}
    assert found.replicated["utility"].levels[ATTACK_SEEDS] == pytest.approx(dict.fromkeys(alone, 0.9), abs=1e-6)
    target = ranking.null_entries[0]
    assert (target.name, target.robustness.value) == ("target", pytest.approx(0, abs=1e-6))


def test_pairs_that_are_alike_give_what_one_pair_gives():
    trials, rows = entry()
    _, one = matched(trials, rows)
    _, two = matched([row | SCALE for row in trials], with_pairs(rows, useful=0.9))
    for name in ("forgetting", "robustness", "utility", "score", "mixing_weight"):
        assert getattr(two, name).value == pytest.approx(getattr(one, name).value, abs=1e-6)
        assert getattr(two, name).plain == pytest.approx(getattr(one, name).plain)
    levels = two.replicated["score"].levels[ANCHOR_SEEDS]
    assert list(levels.values()) == pytest.approx([two.score.value] * 2, abs=1e-6)


def test_the_floor_is_a_share_of_the_mean_target_s_utility():
    # The target that weights are mixed toward keeps .9 / .85 of the mean, and the unlearned model .8 of that.
    trials, rows = entry()
    _, found = matched([row | SCALE for row in trials], with_pairs(rows, useful=0.8))
    at = (1 - 0.9 * 0.85 / 0.9) / (1 - U)
    assert found.mixing_weight.plain == pytest.approx(at, abs=0.06), "between .5, where U is cut at 1, and 1"
    assert found.score.value is not None
    assert found.replicated["robustness"].levels[ANCHOR_SEEDS].keys() == {"anchors 1", "anchors 2"}


def test_weights_that_were_attacked_with_fewer_seeds_count_with_those():
    trials, rows = entry()
    few = [row for row in with_second_seed(rows) if row["attack"] != seeded(1) or weight_of(row) in (0, 1)]
    _, found = matched(trials, few)
    assert found.robustness.value == pytest.approx(R * AT, abs=1e-6)
    assert found.replicated["robustness"].levels == {}


def test_weights_of_earlier_versions_have_the_seeds_that_they_were_attacked_with():
    trials, rows = world(*(one_share("a", (F, R, U), (0.7, 0.5, 0.92), seed) for seed in (1, 2, 3)))
    more = [
        row | {"attack": seeded(1), "value": row["value"] + MORE * (row["subject"] == "unlearned"), "samples": None}
        for row in rows
        if row["attack"] == RELEARN
    ]
    _, both = matched(trials, rows + more)
    assert both.robustness.value == pytest.approx(0.5 - MORE / 0.8 / 2, abs=1e-6)
    assert both.replicated["robustness"].levels[ATTACK_SEEDS].keys() == {"attack seed 0", "attack seed 1"}
    _, one = matched(trials, rows + [row for row in more if row["matching"] == "raw"])
    assert one.robustness.value == pytest.approx(0.5, abs=1e-6)
    assert one.replicated["robustness"].levels == {}
