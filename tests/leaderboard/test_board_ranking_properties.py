"""The ranking of any board: what holds whatever the numbers are, and in whatever order the rows come."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import t, ttest_rel

from leaderboard.ranking.comparison import Difference, compared
from leaderboard.ranking.entry import HEADLINES, Entry
from leaderboard.ranking.ordering import FEWEST_RUNS, ordered
from leaderboard.ranking.rank import Ranking, rank
from tests.support.board_rows import NONE, Row, anchor_rows, entry_rows, item_rows, runs_of, schema_tables, with_samples

_SHARE = st.floats(0, 1, allow_subnormal=False)
_LUCK = st.sampled_from([0.0, 0.1, 0.4])
_ENTRIES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.tuples(_SHARE, _SHARE).map(lambda pair: (max(pair), min(pair))), _SHARE),
    min_size=1,
    max_size=10,
)
"""Runs; a name that comes again is another seed of that entry."""

Runs = Sequence[tuple[str, tuple[float, float], float]]


def _world(chosen: Runs) -> tuple[list[Row], list[Row]]:
    """Trials and measurements."""
    trials, measured = [], [with_samples(row) for row in anchor_rows()]
    for seed, (name, (f, r), u) in enumerate(chosen):
        trial, rows = entry_rows(name, f, r, u, seed)
        trials.append(trial)
        measured += map(with_samples, rows)
    return trials, measured


def _ranked(trials: list[Row], measured: list[Row], luck: float, shuffled: Any = None, **options: Any) -> Ranking:
    """
    Args:
        luck: how far a model's answer to a question is from what it knows.
        shuffled: draws another order of all rows, and of the items in a row.
    """
    items = item_rows(measured, luck)
    found = schema_tables(trials, measured) | {"items": pa.Table.from_pylist(items, _ITEMS)}
    if shuffled:
        for rows in (trials, measured, items):
            shuffled.shuffle(rows)
        for row in items:
            order = list(range(len(row["item"])))
            shuffled.shuffle(order)
            row |= {name: [row[name][place] for place in order] for name in ("item", "value")}
        found = schema_tables(trials, measured) | {"items": pa.Table.from_pylist(items, _ITEMS)}
    return rank(found, "paper", **options)


_ITEMS = schema_tables([], [])["items"].schema


def _same(one: Entry, other: Entry) -> bool:
    """Whether two entries have the same numbers in every replicate."""
    if one.replicated is None or other.replicated is None:
        return one.replicated is other.replicated
    pairs = [(one.replicated[name], other.replicated[name]) for name in HEADLINES]
    return all(np.array_equal(a.replicates, b.replicates) and a.runs == b.runs for a, b in pairs)


def _differences(one: Entry, other: Entry) -> dict[str, Difference]:
    return {
        name: compared(one.replicated[name], other.replicated[name], (one.entry, other.entry)) for name in HEADLINES
    }


@settings(max_examples=30, deadline=None)
@given(_ENTRIES, _LUCK, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_items_does_not_change_the_ranking(chosen: Runs, luck: float, random: Any):
    trials, measured = _world(chosen)
    before = _ranked(trials, measured, luck)
    after = _ranked(trials, measured, luck, random)
    assert after == before
    assert all(_same(*pair) for pair in zip(before.entries, after.entries, strict=True))


@settings(max_examples=60, deadline=None)
@given(_ENTRIES, _LUCK)
def test_a_ranking_keeps_its_promises(chosen: Runs, luck: float):
    found = _ranked(*_world(chosen), luck)
    assert {entry.entry for entry in found.entries} == {name for name, *_ in chosen}
    for entry in found.entries:
        assert entry.reason is None
        assert (entry.rank is None) is (entry.provisional is not None) is (len(entry.seeds) < FEWEST_RUNS)
        assert 0 <= entry.score.value <= 1
        # The harmonic mean of a seed lies between its smallest and its largest term, and R is never above F.
        assert entry.robustness.value <= entry.forgetting.value + 1e-9
        for f, r in zip(entry.forgetting.seed_values, entry.robustness.seed_values, strict=True):
            assert r <= f
        assert (entry.replicated["robustness"].replicates <= entry.replicated["forgetting"].replicates + 1e-12).all()
        assert entry.score.value <= max(entry.forgetting.value, entry.utility.value) + 1e-9
        if luck == 0:
            assert entry.recovery[NONE].value == pytest.approx(1 - entry.forgetting.value, abs=1e-9)
        for name in HEADLINES:
            number = getattr(entry, name)
            low, high = number.interval
            assert 0 <= low <= number.value <= high <= 1, name
            if luck == 0:  # then the worst of several is the worst on any items
                assert number.value == pytest.approx(number.plain, abs=1e-7)
        assert set(entry.worst_share) == set(found.attacks)
        assert sum(entry.worst_share.values()) == pytest.approx(1)
    places = [_place(entry) for entry in found.entries]
    assert places == sorted(places)
    for above, below in pairwise(found.entries):
        if _place(above) == _place(below):
            assert above.score.value >= below.score.value
            assert above.rank is None or above.rank <= below.rank
    for kept in (True, False):
        entries = [entry for entry in found.entries if entry.rank and entry.below_floor is not kept]
        before = 0 if kept else sum(entry.rank is not None and not entry.below_floor for entry in found.entries)
        assert [entry.rank - before for entry in entries] == _brute_force_ranks(entries)
    points = [(e.forgetting.value, e.robustness.value, e.utility.value) for e in found.entries]
    for entry, point in zip(found.entries, points, strict=True):
        beaten = any(other != point and all(o >= p for o, p in zip(other, point, strict=True)) for other in points)
        assert entry.pareto is not beaten


def _place(entry: Entry) -> int:
    """Those that keep utility come first, then those that do not, then those without a rank."""
    return 2 if entry.rank is None else int(entry.below_floor)


def _brute_force_ranks(entries: Sequence[Entry]) -> list[int]:
    """Of entries in the order of their scores."""
    ranks: list[int] = []
    for place, entry in enumerate(entries):
        better = [compared(o.replicated["score"], entry.replicated["score"], (o.entry, entry.entry)) for o in entries]
        significant = sum(found.estimate > 0 and found.p < 0.05 for found in better)
        ranks.append(max(1 + significant, ranks[place - 1] if place else 1))
    return ranks


_THREE = st.lists(st.tuples(_SHARE, _SHARE), min_size=3, max_size=4)


@settings(max_examples=25, deadline=None)
@given(_THREE, _THREE, st.lists(_THREE, min_size=1, max_size=3), _LUCK)
def test_no_entry_changes_how_two_others_compare(one: Any, two: Any, others: list[Any], luck: float):
    def runs(name: str, numbers: list[tuple[float, float]]) -> list[tuple[str, tuple[float, float], float]]:
        return [(name, (max(pair), min(pair)), 1.0) for pair in numbers]

    pair = [*runs("a", one), *runs("b", two)]
    crowd = [run for place, numbers in enumerate(others) for run in runs(f"c{place}", numbers)]
    trials, measured = _world(pair)
    alone = _ranked(trials, measured, luck)
    more_trials, more = _world([*pair, *crowd])
    among = _ranked(more_trials, more, luck)
    (before, after) = ({entry.entry: entry for entry in found.entries} for found in (alone, among))
    for name in "ab":
        assert _same(before[name], after[name])
        for number in HEADLINES:
            assert getattr(before[name], number) == getattr(after[name], number)
    assert _differences(before["a"], before["b"]) == _differences(after["a"], after["b"])
    better = [_better(found) for found in (alone, among)]
    for names in (("a", "b"), ("b", "a")):
        assert (names in better[0]) is (names in better[1])
    assert among.entries == _ranked([*reversed(more_trials)], more, luck).entries


def _better(found: Ranking) -> set[tuple[str, str]]:
    _, verdicts = ordered(found.entries, found.floor)
    return {(verdicts.names[one], verdicts.names[other]) for one, other in np.argwhere(verdicts.better)}


_SCORES = st.lists(st.integers(100, 900), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(_SCORES, min_size=2, max_size=5))
def test_without_luck_in_the_questions_a_comparison_is_students_paired_test(thousandths: list[list[int]]):
    """F = R = U = x has the score x. All answer in proportion, so the runs are all that varies."""
    assume(len({sum(values) for values in thousandths}) == len(thousandths))
    scores = [[number / 1000 for number in values] for values in thousandths]
    assume(all(np.std(np.subtract(a, b)) > 1e-3 for a, b in combinations(scores, 2)))
    means = {f"e{place}": float(np.mean(values)) for place, values in enumerate(scores)}
    runs = dict(zip(means, scores, strict=True))
    rows = [entry_rows(name, x, x, x, seed) for name, values in runs.items() for seed, x in enumerate(values, 1)]
    measured = [*anchor_rows(), *(row for _, of in rows for row in of)]
    found = _ranked([row for row, _ in rows], [with_samples(row) for row in measured], 0.0, floor=0.0)
    entries = {entry.entry: entry for entry in found.entries}
    order = sorted(means, key=means.__getitem__, reverse=True)
    assert [entry.entry for entry in found.entries] == order
    p = {(a, b): ttest_rel(runs[a], runs[b]).pvalue for a in means for b in means if a != b}
    for (a, b), wanted in p.items():
        difference = _differences(entries[a], entries[b])["score"]
        assert difference.p == pytest.approx(wanted, rel=1e-6, abs=1e-12)
        assert difference.estimate == pytest.approx(means[a] - means[b])
    ranks: dict[str, int] = {}
    for name in order:
        better = sum(p[other, name] < 0.05 for other in order[: order.index(name)])
        ranks[name] = max([1 + better, *ranks.values()])
    assert {name: entry.rank for name, entry in entries.items()} == ranks
    first, *others = order
    assert found.verdict.first == first
    assert found.verdict.leader == (first if _holm([p[first, other] for other in others]) else None)
    ties = {one: tuple(o for o in order[place + 1 :] if p[one, o] >= 0.05) for place, one in enumerate(order)}
    assert found.verdict.ties == {one: tied for one, tied in ties.items() if tied}


def _holm(p_values: Sequence[float]) -> bool:
    """Whether all hold together: the smallest of m at 0.05 / m, the next at 0.05 / (m - 1), ... (Holm 1979)."""
    return all(p <= 0.05 / (len(p_values) - place) for place, p in enumerate(sorted(p_values)))


@pytest.mark.parametrize(
    ("p", "leads"),
    [
        ([0.04], True),
        ([0.06], False),
        ([0.04, 0.04], False),  # each by itself, and not together: the smaller would have to be 0.025
        ([0.024, 0.049], True),
        ([0.016, 0.024, 0.049], True),
        ([0.03, 0.03, 0.03], False),
        ([0.001, 0.001, 0.06], False),
        ([0.018, 0.001, 0.001], True),
    ],
)
def test_a_leader_is_better_than_all_others_together(p: list[float], leads: bool):
    """Runs a little below the leader's, by so much that Student's paired test gives these probabilities."""
    assert _holm(p) is leads
    shape = np.array([-1.0, 0.0, 1.0])  # deviation 1
    rows = runs_of("leader", 0.8, 0.8, 0.8)
    for place, wanted in enumerate(p):
        scale = 0.01 * (place + 1)
        gap = scale * t.isf(wanted / 2, 2) / np.sqrt(3)
        values = 0.8 - gap + scale * shape
        rows += [entry_rows(f"other {place}", x, x, x, seed) for seed, x in enumerate(values, 1)]
    measured = [*anchor_rows(), *(row for _, of in rows for row in of)]
    found = _ranked([row for row, _ in rows], [with_samples(row) for row in measured], 0.0, floor=0.0)
    assert found.entries[0].entry == "leader"
    assert found.verdict.leader == ("leader" if leads else None)
    # Ranks are about pairs: who is significantly worse than the leader does not share its rank, leader or not.
    significant = {f"other {place}" for place, wanted in enumerate(p) if wanted < 0.05}
    assert set(found.verdict.ties.get("leader", ())) == {f"other {place}" for place in range(len(p))} - significant
    said = " ".join(found.verdict.sentences())
    assert ("No entry leads" in said) is not leads
