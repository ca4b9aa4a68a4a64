"""How much tuning stands behind an entry."""

from __future__ import annotations

import itertools
import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.ranking.rank import rank
from leaderboard.ranking.searches import expected_best, search_text
from suite.spec.search_space import plan
from tests.support.board_rows import anchor_rows, entry_rows, schema_tables
from tests.support.small import SMALL

SEARCH = json.dumps({"id": "f" * 16, "sampler": "tpe", "space": {"optimizer.lr": [1, 2]}})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_the_expected_best_is_the_mean_over_all_draws(scores: list[float], data: st.DataObject):
    k = data.draw(st.integers(1, len(scores)))
    wanted = statistics.fmean(max(draw) for draw in itertools.combinations(scores, k))
    assert expected_best(scores, k) == pytest.approx(wanted)


def test_an_entry_of_a_search_tells_what_the_search_cost():
    trials, measured, scores = [], anchor_rows(), []
    measured += [row | {"split": "dev"} for row in anchor_rows()]
    for number in range(5):
        trial, rows = entry_rows(f"drawn {number}", 0.5 + number / 10, 0.4, 0.95, search=SEARCH)
        trials.append(trial)
        measured += [row | {"split": "dev"} for row in rows]
        scores.append(3 / (1 / (0.5 + number / 10) + 1 / 0.4 + 1 / 0.95))
    measured += rows  # the last one is the finalist
    by_hand, its_rows = entry_rows("by hand", 0.8, 0.7, 0.95)
    damaged, others = entry_rows("damaged", 0.8, 0.7, 0.95, search="{" * 200)
    found = rank(schema_tables([*trials, by_hand, damaged], [*measured, *its_rows, *others]), "paper")
    [search] = found.searches
    assert (search.sampler, search.trials, search.on_dev, search.entries) == ("tpe", 5, 5, ("drawn 4",))
    assert search.loss_evaluations == 5 * 60
    assert search.expected_best == pytest.approx({1: statistics.fmean(scores), 4: expected_best(scores, 4)})
    assert search_text(search).startswith("search ffffffff (tpe): 5 trials, 5 on dev, 300 loss evaluations; expected")
    assert json.loads(json.dumps(found.as_json()))["searches"][0]["id"] == "f" * 16


def test_what_a_plan_declares():
    space = {**SMALL, "search": {"space": {"optimizer.lr": [1e-3, 1e-4]}, "trials": 4}}
    found = json.loads(plan({**space}).declared())
    assert (found["sampler"], found["trials"], found["space"]) == ("tpe", 4, {"optimizer.lr": [1e-3, 1e-4]})
    longer = {**space, "search": {**space["search"], "trials": 8}}
    assert json.loads(plan({**longer}).declared())["id"] == found["id"]
    other = {**space, "steps": 3}
    assert json.loads(plan({**other}).declared())["id"] != found["id"]
    assert plan(SMALL).declared() is None
    assert json.loads(plan({**SMALL, "search": {"grid": {"seed": [0, 1]}}}).declared())["sampler"] == "grid"
