"""The ranking of any board: what holds whatever the numbers are, and in whatever order the rows come."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.ranking.entry import Entry
from leaderboard.ranking.rank import rank
from tests.support.board_rows import NONE, Row, anchor_rows, entry_rows, schema_tables

_SHARE = st.floats(0, 1, allow_subnormal=False)
_ENTRIES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.tuples(_SHARE, _SHARE).map(lambda pair: (max(pair), min(pair))), _SHARE),
    min_size=1,
    max_size=8,
)


def _world(chosen: list[tuple[str, tuple[float, float], float]]) -> tuple[list[Row], list[Row]]:
    """Trials and measurements; a name that comes again is another seed of that entry."""
    trials, measured = [], anchor_rows()
    for seed, (name, (f, r), u) in enumerate(chosen):
        trial, rows = entry_rows(name, f, r, u, seed)
        trials.append(trial)
        measured += rows
    return trials, measured


@settings(max_examples=40, deadline=None)
@given(_ENTRIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_change_the_ranking(chosen: list[Any], random: Any):
    trials, measured = _world(chosen)
    before = rank(schema_tables(trials, measured), "paper")
    random.shuffle(trials)
    random.shuffle(measured)
    assert rank(schema_tables(trials, measured), "paper") == before


@settings(max_examples=60, deadline=None)
@given(_ENTRIES)
def test_a_ranking_keeps_its_promises(chosen: list[Any]):
    found = rank(schema_tables(*_world(chosen)), "paper")
    assert {entry.entry for entry in found.entries} == {name for name, *_ in chosen}
    for entry in found.entries:
        assert entry.rank is not None
        assert 0 <= entry.score.value <= 1
        # The harmonic mean of a seed lies between its smallest and its largest term, and R is never above F.
        assert entry.robustness.value <= entry.forgetting.value + 1e-9
        assert entry.score.value <= max(entry.forgetting.value, entry.utility.value) + 1e-9
        assert entry.recovery[NONE].value == pytest.approx(1 - entry.forgetting.value, abs=1e-9)
    for above, below in pairwise(found.entries):
        assert above.below_floor <= below.below_floor
        assert above.rank <= below.rank
        if above.below_floor == below.below_floor:
            assert above.score.value >= below.score.value
    assert [entry.rank for entry in found.entries] == _brute_force_ranks(found.entries)
    points = [(e.forgetting.value, e.robustness.value, e.utility.value) for e in found.entries]
    for entry, point in zip(found.entries, points, strict=True):
        beaten = any(other != point and all(o >= p for o, p in zip(other, point, strict=True)) for other in points)
        assert entry.pareto is not beaten


def _brute_force_ranks(entries: tuple[Entry, ...]) -> list[int]:
    """Rank by rank: the leader is the first who has none, and all down to the first clear loser share it."""
    ranks: list[int] = []
    while len(ranks) < len(entries):
        leader = entries[len(ranks)]
        limit = leader.score.value - 1.96 * leader.score.over_examples
        tied = 0
        for entry in entries[len(ranks) :]:
            lost = entry.score.value + 1.96 * entry.score.over_examples < limit
            if lost or entry.below_floor != leader.below_floor:
                break
            tied += 1
        ranks += [len(ranks) + 1] * tied
    return ranks
