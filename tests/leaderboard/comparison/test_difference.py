"""Intervals and p-values over items and runs, against scipy and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from leaderboard.ranking.comparison import Replicated, compared, spread
from leaderboard.ranking.comparison.difference import Runs, holm, p_of, p_value

DRAWS = 4_000_000


def number(estimate: float, error: float, runs: dict[str, float], seed: int = 0, size: int = 2000) -> Replicated:
    noise = stats.norm.ppf((np.random.default_rng(seed).permutation(size) + 0.5) / size)
    return Replicated(np.concatenate([[estimate], estimate + error * noise / noise.std(ddof=1)]), runs)


def seeds(*values: float, name: str = "seed") -> dict[str, float]:
    return {f"{name} {number}": value for number, value in enumerate(values)}


@pytest.mark.parametrize("size", [0.0, 0.3, 1.96, 5.0, 12.0])
def test_without_runs_the_p_value_is_the_normal_one(size):
    wanted = 1.0 if size == 0 else 2 * stats.norm.sf(size)
    assert p_value(0.1 * size, 0.1, []) == pytest.approx(wanted, rel=1e-10)
    assert p_value(-0.1 * size, 0.1, [Runs(0.0, 3)]) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("df", [1, 2, 4, 9])
@pytest.mark.parametrize("size", [0.3, 2.0, 8.0, 60.0])
def test_without_items_the_p_value_is_students(df, size):
    assert p_value(0.1 * size, 0.0, [Runs(0.1, df)]) == pytest.approx(2 * stats.t.sf(size, df), rel=1e-9)


@pytest.mark.parametrize(
    ("error", "draws"),
    [
        (0.05, [Runs(0.05, 2)]),
        (0.05, [Runs(0.001, 1)]),
        (0.01, [Runs(0.2, 1)]),
        (0.05, [Runs(0.02, 4), Runs(0.08, 2)]),
        (0.0, [Runs(0.05, 1), Runs(0.05, 1)]),
        (0.001, [Runs(0.05, 2), Runs(0.04, 9)]),
        (0.1, [Runs(0.01, 2), Runs(0.0, 2)]),
    ],
)
def test_p_values_are_those_of_brute_force(error, draws):
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, error, DRAWS) if error else np.zeros(DRAWS)
    for draw in draws:
        drawn += draw.scale * rng.standard_t(draw.df, DRAWS)
    for share in (0.5, 0.1, 0.05, 0.01):
        size = float(np.quantile(np.abs(drawn), 1 - share))
        assert p_value(size, error, draws) == pytest.approx(share, abs=5 * math.sqrt(share / DRAWS) + 2e-4)


@pytest.mark.parametrize(("share", "within"), [(0.5, 1e-3), (0.05, 1e-3), (0.01, 0.01), (1e-3, 0.05), (1e-5, 0.1)])
def test_two_draws_with_one_degree_of_freedom_add_up_to_one(share, within):
    # Student's t with one degree of freedom is Cauchy's distribution, whose scales add up.
    size = 0.08 * float(stats.cauchy.isf(share / 2))
    assert p_value(size, 0.0, [Runs(0.05, 1), Runs(0.03, 1)]) == pytest.approx(share, rel=within)


def test_p_values_have_no_floor_of_one_in_the_number_of_replicates():
    one, other = number(0.9, 0.01, seeds(0.9, 0.9)), number(0.7, 0.01, seeds(0.7, 0.7), 1)
    found = compared(one, other, ("one", "other"))
    assert 0 < found.p < 1e-30
    assert found.p == pytest.approx(2 * stats.norm.sf(0.2 / found.item_error), rel=1e-6)


def test_entries_with_the_same_seeds_are_paired_by_them():
    one, other = seeds(0.60, 0.71, 0.52), seeds(0.50, 0.60, 0.41)
    found = compared(number(0.61, 0.0, one), number(0.5033, 0.0, other), ("one", "other"))
    differences = [a - b for a, b in zip(one.values(), other.values(), strict=True)]
    assert list(found.per_seed.values()) == pytest.approx(differences)
    assert found.run_error == pytest.approx(np.std(differences, ddof=1) / math.sqrt(3))
    wanted = stats.ttest_1samp(differences, 0.0)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-2)  # 0.61 - 0.5033 is their mean but for its digits
    interval = wanted.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=2e-3)


def test_entries_with_other_seeds_have_a_draw_each():
    one, other = seeds(0.60, 0.71, 0.52), seeds(0.50, 0.66, name="another")
    found = compared(number(0.61, 0.02, one), number(0.58, 0.02, other, 1), ("one", "other"))
    scales = [np.std(list(runs.values()), ddof=1) / math.sqrt(len(runs)) for runs in (one, other)]
    assert found.per_seed == {}
    assert found.run_error == pytest.approx(math.hypot(*scales))
    assert found.p == pytest.approx(p_value(0.03, found.item_error, [Runs(scales[0], 2), Runs(scales[1], 1)]))


def test_one_run_says_nothing_over_runs():
    found = compared(number(0.9, 0.02, seeds(0.9)), number(0.5, 0.02, seeds(0.5), 1), ("one", "other"))
    assert (found.p, found.run_error) == (None, None)
    assert (found.low, found.high) == found.over_items
    assert p_of(number(0.9, 0.02, seeds(0.9)), number(0.5, 0.02, seeds(0.5, 0.5))) is None


def test_an_interval_over_items_alone_is_that_of_the_replicates():
    replicates = np.random.default_rng(3).gamma(2.0, 0.02, 2001)
    found = spread(Replicated(replicates, seeds(float(replicates[0]))), "entry", None)
    around = replicates[1:] - replicates[1:].mean() + replicates[0]
    low, high = np.quantile(around, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((min(low, replicates[0]), max(high, replicates[0])), abs=1e-12)


@pytest.mark.parametrize("df", [1, 2, 4, 9])
def test_an_interval_over_runs_alone_is_students(df):
    values = np.linspace(0.4, 0.6, df + 1)
    found = spread(number(0.5, 0.0, seeds(*values)), "entry", None)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval()
    half = (interval.high - interval.low) / 2
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=0.02)


def test_intervals_stay_within_what_a_number_can_be():
    found = spread(number(0.98, 0.05, seeds(0.9, 1.0)), "entry")
    assert found.high == 1.0
    assert 0.0 <= found.low < 0.98
    difference = compared(number(0.98, 0.4, seeds(0.9, 1.0)), number(0.1, 0.4, seeds(0.0, 0.2), 1), ("a", "b"))
    assert -1.0 <= difference.low <= difference.high <= 1.0


def test_turned_round_a_difference_is_its_negative():
    one, other = number(0.6, 0.02, seeds(0.5, 0.6, 0.7)), number(0.5, 0.03, seeds(0.45, 0.5, 0.58), 1)
    there, back = compared(one, other, ("one", "other")), compared(other, one, ("other", "one"))
    assert back.estimate == -there.estimate
    assert back.p == there.p
    # The draws over runs are the same ones, and not their negatives: as many lie below as above.
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=0.01)


def test_equal_numbers_that_were_summed_in_another_order_do_not_differ():
    runs = seeds(0.1 + 0.2, 0.3, 0.3)
    one = number(0.1 + 0.2, 1e-17, runs)
    other = number(0.3, 1e-17, seeds(0.3, 0.3, 0.3), 1)
    assert compared(one, other, ("one", "other")).p == 1.0


def test_the_same_numbers_give_the_same_result_bit_for_bit():
    one, other = number(0.6, 0.02, seeds(0.5, 0.6, 0.7)), number(0.5, 0.03, seeds(0.45, 0.5, 0.58), 1)
    assert compared(one, other, ("one", "other")) == compared(one, other, ("one", "other"))
    assert spread(one, "one") == spread(one, "one")


@pytest.mark.parametrize(
    ("p_values", "held"),
    [
        ([], []),
        ([0.04], [True]),
        ([0.01, 0.04, 0.03, 0.005], [True, False, False, True]),  # Holm 1979: 0.0125, 0.0167, 0.025
        ([0.05, 0.05], [False, False]),
        ([0.025, 0.05], [True, True]),
        ([0.0, 0.9, 0.0], [True, False, True]),
    ],
)
def test_holm(p_values, held):
    assert holm(p_values) == held


def test_holm_holds_its_level_together():
    rng = np.random.default_rng(0)
    wrong = sum(any(holm(rng.uniform(size=8).tolist())) for _ in range(10_000))
    assert abs(wrong / 10_000 - (1 - (1 - 0.05 / 8) ** 8)) < 5 * math.sqrt(0.05 / 10_000)
