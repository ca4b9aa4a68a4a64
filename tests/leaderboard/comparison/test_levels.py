"""Levels of seeds beside items and runs: their draws against brute force, and against entries with a known truth."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from leaderboard.ranking.comparison import Replicated, Verdicts, compared, spread
from leaderboard.ranking.comparison.difference import Runs, p_of, p_value, run_draws
from leaderboard.ranking.comparison.tails import tail
from tests.leaderboard.comparison.simulation_levels import Case, crossfitted, simulated
from tests.leaderboard.comparison.test_difference import number, seeds

DRAWS = 2_000_000
ATTACKS, ANCHORS = "attack seeds", "anchor seeds"
CASES = (
    Case(3, 3, 0.02, 0.03, 0.05),
    Case(3, 2, 0.02, 0.03, 0.05),
    Case(5, 5, 0.02, 0.02, 0.05),
    Case(5, 10, 0.01, 0.02, 0.1, together=0.0),
    Case(3, 5, 0.05, 0.03, 0.02, over_both=0.05),
    Case(5, 3, 0.02, 0.05, 0.0, over_both=0.05),
    Case(3, 3, 0.0, 0.0, 0.05, same=False),
    Case(5, 5, 0.02, 0.02, 0.05, over_both=0.05, same=False),
)


def with_levels(of: Replicated, **levels: dict[str, float]) -> Replicated:
    return replace(of, levels={name.replace("_", " "): numbers for name, numbers in levels.items()})


@pytest.mark.parametrize("size", [0.05, 0.3, 2.0])
@pytest.mark.parametrize(
    ("scales", "df"), [((0.2, 0.1, 0.05), (2, 1, 4)), ((0.1, 0.1, 0.1, 0.1, 0.1), (2, 2, 1, 1, 9))]
)
@pytest.mark.parametrize("error", [0.0, 0.1])
def test_the_tail_of_many_terms_is_that_of_draws(size, scales, df, error):
    rng = np.random.default_rng(0)
    drawn = error * rng.normal(size=DRAWS) + sum(s * rng.standard_t(f, DRAWS) for s, f in zip(scales, df, strict=True))
    share = np.mean(np.abs(drawn) >= size)
    assert tail(size, error, scales, df) == pytest.approx(share, abs=5 * np.sqrt(share / DRAWS))
    assert p_value(size, error, list(map(Runs, scales, df))) == tail(size, error, scales, df)


@pytest.mark.parametrize(("scale", "df"), [(0.1, 1), (0.1, 4), (3.0, 2)])
@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_the_tail_of_one_term_is_student_s(scale, df, size):
    exact = 2 * stats.t.sf(size / scale, df)
    assert tail(size, 0.0, [scale], [df]) == pytest.approx(exact, rel=1e-3 if exact > 1e-6 else 0.2)


def test_a_level_s_draw_is_the_deviation_of_the_differences_seed_by_seed():
    one = with_levels(number(0.6, 0.01, seeds(0.6, 0.6)), attack_seeds={"0": 0.5, "1": 0.6, "2": 0.7})
    other = with_levels(number(0.5, 0.01, seeds(0.5, 0.5)), attack_seeds={"0": 0.4, "2": 0.6, "1": 0.53})
    over_runs, over_seeds = run_draws(one, other)
    assert over_runs == Runs(pytest.approx(0), 1)
    assert over_seeds == Runs(pytest.approx(np.std([0.1, 0.07, 0.1], ddof=1) / np.sqrt(3)), 2)


def test_entries_with_other_seeds_bring_their_own_deviations_and_one_seed_says_nothing():
    one = with_levels(number(0.6, 0.01, seeds(0.6, 0.61)), attack_seeds={"0": 0.5, "1": 0.7})
    other = with_levels(number(0.5, 0.01, seeds(0.5, 0.55)), attack_seeds={"0": 0.4, "1": 0.5, "2": 0.6})
    none = number(0.5, 0.01, seeds(0.5, 0.55))
    own = [Runs(pytest.approx(np.std([0.5, 0.7], ddof=1) / np.sqrt(2)), 1), Runs(pytest.approx(0.1 / np.sqrt(3)), 2)]
    assert run_draws(one, other)[1:] == own
    assert run_draws(one, none)[1:] == own[:1]
    assert run_draws(none, other)[1:] == own[1:]
    assert run_draws(none, none) == run_draws(none, none)[:1]
    assert p_of(one, none) is not None


def test_intervals_are_the_quantiles_of_items_runs_and_levels_together():
    levels = {
        "attack_seeds": {"0": 0.4, "1": 0.5, "2": 0.63},
        "anchor_seeds": {"a": 0.45, "b": 0.5, "c": 0.5, "d": 0.6},
    }
    size = 200_000
    one = with_levels(number(0.5, 0.03, seeds(0.45, 0.5, 0.56), size=size), **levels)
    rng, of = np.random.default_rng(1), [list(one.runs.values()), *(list(level.values()) for level in levels.values())]
    drawn = 0.03 * rng.normal(size=DRAWS) + sum(
        np.std(v, ddof=1) / np.sqrt(len(v)) * rng.standard_t(len(v) - 1, DRAWS) for v in of
    )
    low, high = 0.5 + np.quantile(drawn, [0.025, 0.975])
    found = spread(one, "entry", None)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))
    zero = replace(one, replicates=np.zeros(size + 1), runs=dict.fromkeys(one.runs, 0.0), levels={})
    apart = compared(one, zero, ("a", "b"), None)
    assert (apart.low, apart.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))
    assert apart.p == pytest.approx(np.mean(np.abs(drawn) >= 0.5), abs=1e-3)


def test_without_levels_nothing_is_another_number():
    one, other = number(0.6, 0.02, seeds(0.55, 0.6, 0.66)), number(0.5, 0.02, seeds(0.5, 0.52, 0.48), seed=1)
    for level in ({}, {ATTACKS: {}}):
        same = replace(one, levels=level)
        assert spread(same, "one") == spread(one, "one")
        assert compared(same, other, ("one", "other")) == compared(one, other, ("one", "other"))
        assert p_of(same, other) == p_of(one, other)


def test_a_level_widens_the_interval_and_the_p_value():
    one, other = number(0.6, 0.02, seeds(0.55, 0.6, 0.66)), number(0.5, 0.02, seeds(0.5, 0.52, 0.48), seed=1)
    wide = with_levels(one, attack_seeds={"0": 0.5, "1": 0.6, "2": 0.7})
    assert spread(wide, "one").high - spread(wide, "one").low > spread(one, "one").high - spread(one, "one").low
    assert p_of(wide, other) > p_of(one, other)


def test_one_run_has_an_interval_over_attack_seeds_and_no_p_value():
    one = number(0.6, 0.001, seeds(0.6))
    wide = with_levels(one, attack_seeds={"0": 0.5, "1": 0.6, "2": 0.7})
    assert spread(wide, "one").low < 0.5 < 0.59 < spread(one, "one").low
    assert compared(wide, number(0.5, 0.001, seeds(0.5)), ("one", "other")).p is None


def random_entries(rng: np.random.Generator, count: int) -> dict[str, Replicated]:
    """Entries of which some share seeds of a level, some have others, and some have none."""
    found = {}
    for place in range(count):
        estimate = rng.uniform(0.3, 0.7)
        runs = seeds(*(estimate + rng.normal(0, 0.03, 3)), name=rng.choice(["seed", "other"]))
        levels = {}
        for level in (ATTACKS, ANCHORS):
            many = int(rng.choice([0, 2, 3, 3]))
            if many:
                levels[level] = seeds(*(estimate + rng.normal(0, rng.choice([0.0, 0.02, 0.1]), many)))
        found[f"entry {place:02}"] = replace(number(estimate, 0.03, runs, seed=place), levels=levels)
    return found


@pytest.mark.parametrize("draw", range(3))
def test_verdicts_of_all_pairs_are_those_of_each_pair(draw):
    entries = random_entries(np.random.default_rng(draw), 14)
    verdicts = Verdicts.of(entries)
    told = 0
    for (i, a), (j, b) in itertools.permutations(enumerate(entries.values()), 2):
        wanted = a.estimate > b.estimate and p_of(a, b) < 0.05
        assert verdicts.better[i, j] == wanted
        told += wanted
    assert told > 0
    without = Verdicts.of({name: replace(one, levels={}) for name, one in entries.items()})
    assert verdicts.better.sum() < without.better.sum()
    assert verdicts.resolution().difference > without.resolution().difference


def test_the_resolution_has_the_power_that_it_says_over_attack_seeds_too():
    # Of two entries that differ by it, with the deviations that it is made of, about 80 % are told apart.
    rng, found = np.random.default_rng(0), []
    case = Case(5, 5, 0.02, 0.02, 0.04, together=0.0)
    for draw in range(300):
        gap = 0.14
        pair = []
        for side in range(2):
            runs = 0.5 + side * gap + rng.normal(0, 0.02, 5)
            moved = rng.normal(0, 0.04, 5)
            error = 0.02 * rng.normal()
            estimate = runs.mean() + moved.mean() + error
            one = number(estimate, 0.02, seeds(*(runs - runs.mean() + estimate)), seed=2 * draw + side)
            pair.append(with_levels(one, attack_seeds=seeds(*(moved - moved.mean() + estimate))))
        found.append((Verdicts.of(dict(zip("ab", pair, strict=True))).resolution().difference, p_of(*pair) < 0.05))
    resolved, told = map(np.array, zip(*found, strict=True))
    close = np.abs(np.median(resolved) - gap) < 0.03
    assert close, (np.median(resolved), case)
    assert 0.65 < told.mean() < 0.98


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_differences_that_are_not_there_are_seen_rarely_and_intervals_hold_the_truth(case):
    found = simulated(case, 500)
    assert found.false <= 0.06
    assert found.covered >= 0.92
    assert found.covered_difference >= 0.92


def test_without_the_level_many_differences_would_be_seen_that_are_not_there():
    # What the level is for: the same entries, as if their one set of attack seeds were all that there is.
    from tests.leaderboard.comparison.simulation_levels import pairs

    told = [
        p_of(*(replace(number, levels={}) for number in pair)) < 0.05
        for pair in pairs(Case(5, 3, 0.02, 0.02, 0.05, together=0.0), 300, 0)
    ]
    assert np.mean(told) > 0.2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_same_with_many_draws(case):
    found = simulated(case, 6000)
    assert found.false <= 0.06
    assert found.covered >= 0.92
    assert found.covered_difference >= 0.92


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("deviation", "runs", "attack_seeds"), [(0.1, 3, 3), (0.1, 5, 5), (0.05, 5, 3), (0.0, 3, 3)])
def test_the_same_of_robustness_from_answers_to_items(deviation, runs, attack_seeds):
    found = crossfitted(deviation, runs, attack_seeds, 1500)
    assert found.false <= 0.07  # Monte Carlo error .006
    assert found.covered >= 0.92
    assert found.covered_difference >= 0.92
