"""Ranks, ties and the leader among many entries, against comparing every two of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from leaderboard.ranking.comparison import Replicated, Resolution, Verdicts
from leaderboard.ranking.comparison.difference import Runs, holm, p_of, p_value
from leaderboard.ranking.comparison.verdicts import CLOSE, _five_percent_point, smallest_told


def table(
    entries: int, runs: int, seed: int = 0, *, paired: float = 1.0, items: float = 0.015, over_runs: float = 0.02
):
    """Entries with shared and own errors over items; `paired` is the share of them with the same seeds."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.02, 501)
    found = {}
    for number in range(entries):
        estimate = rng.uniform(0.45, 0.65)
        replicates = estimate + common + rng.normal(0, items, 501)
        replicates[0] = estimate
        name = "seed" if rng.uniform() < paired else f"seed of {number}"
        values = {f"{name} {run}": estimate + rng.normal(0, over_runs) for run in range(runs)}
        found[f"entry {number:02}"] = Replicated(replicates, values)
    return found


@pytest.mark.parametrize(
    "entries",
    [
        table(40, 3),
        table(40, 5, 1),
        table(25, 2, 2, over_runs=0.005),
        table(25, 10, 3, paired=0.5),
        table(20, 3, 4, paired=0.0),
        table(25, 4, 5, over_runs=0.0),
        table(25, 4, 6, items=0.0, paired=0.7),
    ],
    ids=["3 runs", "5 runs", "2 runs", "half of them paired", "unpaired", "no run noise", "no own item noise"],
)
def test_every_two_entries_are_compared_as_if_they_were_alone(entries):
    verdicts = Verdicts.of(entries)
    assert 0 < verdicts.better.sum() < verdicts.better.size / 2 - 1, "a table in which something is told, and not all"
    for (i, one), (j, other) in itertools.product(enumerate(entries.values()), repeat=2):
        wanted = one.estimate > other.estimate and p_of(one, other) < 0.05
        assert verdicts.better[i, j] == wanted, (i, j)


@pytest.mark.parametrize("paired", [1.0, 0.5])
def test_adding_an_entry_changes_no_verdict_between_two_others(paired):
    entries = table(30, 3, 7, paired=paired)
    names = list(entries)
    whole = Verdicts.of(entries).better
    for size in (2, 5, 17, 29):
        kept = np.random.default_rng(size).permutation(30)[:size]
        some = Verdicts.of({names[place]: entries[names[place]] for place in kept})
        assert (some.better == whole[np.ix_(kept, kept)]).all()


def test_ranks_count_the_entries_that_are_better_and_never_contradict_the_order():
    entries = table(30, 3, 8)
    verdicts = Verdicts.of(entries)
    ranks = verdicts.ranks()
    order = sorted(entries, key=lambda name: -entries[name].estimate)
    assert ranks[order[0]] == 1
    assert [ranks[name] for name in order] == sorted(ranks.values())
    for name in order:
        better = verdicts.better[:, verdicts.names.index(name)].sum()
        assert ranks[name] >= 1 + better
    assert list(ranks) == order


def test_ties_are_the_lower_entries_that_cannot_be_told():
    entries = table(12, 3, 9)
    ties = Verdicts.of(entries).ties()
    for one, other in itertools.permutations(entries, 2):
        lower = entries[other].estimate < entries[one].estimate
        assert (other in ties[one]) == (lower and p_of(entries[one], entries[other]) >= 0.05)


@pytest.mark.parametrize("seed", range(6))
def test_the_leader_is_better_than_all_others_together(seed):
    entries = table(6, 5, seed, over_runs=0.005)
    first, *others = sorted(entries, key=lambda name: -entries[name].estimate)
    leads = all(holm([p_of(entries[first], entries[other]) for other in others]))
    assert Verdicts.of(entries).leader() == (first if leads else None)


@pytest.mark.parametrize("count", [0, 1])
def test_a_table_without_pairs(count):
    verdicts = Verdicts.of(table(count, 3))
    assert (verdicts.leader(), verdicts.resolution(), len(verdicts.ranks())) == (None, None, count)


def test_identical_entries_are_never_told_apart():
    one = next(iter(table(1, 3).values()))
    assert not Verdicts.of({"one": one, "copy": one, "another copy": one}).better.any()


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30])
def test_five_percent_points_from_the_table_are_close_enough(df):
    for angle in np.linspace(0, math.pi / 2, 301):
        error, scale = 0.03 * math.cos(angle), 0.03 * math.sin(angle)
        point = float(_five_percent_point(np.array([error]), np.array([scale]), df)[0])
        assert p_value(point * (1 + CLOSE), error, [Runs(scale, df)]) < 0.05
        assert p_value(point * (1 - CLOSE), error, [Runs(scale, df)]) > 0.05


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
@pytest.mark.parametrize(("item_error", "deviation"), [(0.02, 0.0), (0.02, 0.02), (0.02, 0.1), (0.0, 0.1)])
def test_the_smallest_difference_is_told_four_times_of_five(runs, item_error, deviation):
    told, draws = smallest_told(item_error, deviation, runs), 4000
    rng = np.random.default_rng(runs)
    shared = rng.normal(told, item_error, draws) if item_error else np.full(draws, told)
    differences = shared[:, None] + rng.normal(0, deviation, (draws, runs))
    errors = differences.std(axis=1, ddof=1) / math.sqrt(runs)
    found = [
        p_value(float(mean), item_error, [Runs(float(error), runs - 1)]) < 0.05
        for mean, error in zip(differences.mean(1), errors, strict=True)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / draws))


def test_nothing_that_varies_tells_every_difference():
    assert smallest_told(0.0, 0.0, 3) == 0.0


def test_more_runs_are_counted_until_the_wanted_difference_is_told():
    found = Resolution.of(0.012, 0.06, 3)
    assert found.runs == 3
    assert found.difference == smallest_told(0.012, 0.06, 3)
    assert smallest_told(0.012, 0.06, 3 + found.more_runs) <= 0.05 < smallest_told(0.012, 0.06, 2 + found.more_runs)


@pytest.mark.parametrize(
    ("item_error", "deviation", "runs", "more"), [(0.05, 0.0, 3, None), (0.01, 0.001, 5, 0), (0.05, 0.1, 150, None)]
)
def test_where_questions_lack_no_number_of_runs_is_named(item_error, deviation, runs, more):
    assert Resolution.of(item_error, deviation, runs).more_runs == more
