"""Two entries side by side at matched utility."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leaderboard.board.store import Board
from leaderboard.ranking.compare import NotCompared, compare
from leaderboard.ranking.rank import rank
from tests.leaderboard.test_board_mixing_curve import along, line, one_share, world
from tests.support.board_rows import entry_rows, fill, schema_tables
from tests.support.command import regrade

ONE = [along("one", line(0.9, 0.8, 0.8), seed) for seed in (1, 2, 3)]
OTHER = [along("other", line(0.9, 0.3, 0.6), seed) for seed in (1, 2, 3)]


def test_the_numbers_are_those_that_a_ranking_at_matched_utility_has():
    tables = schema_tables(*world(*ONE, *OTHER))
    entries = {entry.entry: entry.matched for entry in rank(tables, "paper", matched=True).entries}
    [found] = compare(tables, "paper", "test", ["one", "other"], floor=0.9)
    assert found.matched == "U = 0.9 on test"
    assert "At matched utility: U = 0.9 on test." in found.sentences()
    assert found.as_json()["matched"] == found.matched
    assert found.items == ()
    for name in ("score", "forgetting", "robustness", "robustness_harmonic", "utility"):
        line_of = next(one for one in found.lines if one.name == name)
        assert line_of.one == pytest.approx(getattr(entries["one"], name).value)
        assert line_of.other == pytest.approx(getattr(entries["other"], name).value)
    for attack, number in entries["one"].recovery.items():
        assert next(one for one in found.lines if one.name == attack).one == pytest.approx(number.value)
    # Utility crosses .9 at w = 1/2 and w = 1/4, where numbers that change evenly are so much of the whole.
    difference = {one.name: one.difference.estimate for one in found.lines}
    assert difference["robustness"] == pytest.approx(0.8 / 2 - 0.3 / 4, abs=1e-6)
    assert difference["utility"] == pytest.approx(0, abs=1e-6)


def test_without_a_floor_the_weights_are_compared_as_they_are():
    [found] = compare(schema_tables(*world(*ONE, *OTHER)), "paper", "test", ["one", "other"])
    assert found.matched is None and "matched" not in found.as_json()
    assert next(one for one in found.lines if one.name == "utility").difference.estimate == pytest.approx(0.2)


def test_single_shares_say_on_which_questions_they_were_matched():
    entries = [
        one_share(name, (0.9, 0.5, 0.6), (0.5, r, 0.9), s) for name, r in (("a", 0.4), ("b", 0.3)) for s in (1, 2)
    ]
    [found] = compare(schema_tables(*world(*entries)), "paper", "test", ["a", "b"], floor=0.9)
    assert found.matched == "U = 0.9 on dev"
    assert next(one for one in found.lines if one.name == "robustness").difference.estimate == pytest.approx(0.1)


def test_entries_that_were_not_matched_are_refused_with_what_to_do():
    raw = entry_rows("raw", 0.9, 0.5, 0.8)
    with pytest.raises(NotCompared, match=r"raw, seed .*: not measured at matched utility"):
        compare(schema_tables(*world(*ONE, raw)), "paper", "test", ["one", "raw"], floor=0.9)
    other = entry_rows("other", 0.9, 0.5, 0.8)
    with pytest.raises(NotCompared, match=r"nothing was measured at utility matched to 0.9. Set measure.match=0.9"):
        compare(schema_tables(*world(raw, other)), "paper", "test", ["raw", "other"], floor=0.9)


def test_the_command_says_where_it_compares(tmp_path: Path):
    store = tmp_path / "store"
    fill(Board(store / "board"), *world(*ONE, *OTHER))
    entries = ("board", "compare", "one", "other", "--store", store, "--matched")
    assert "At matched utility: U = 0.9 on test." in regrade(*entries).stdout
    assert json.loads(regrade(*entries, "--json").stdout)[0]["matched"] == "U = 0.9 on test"
    only = regrade(*entries, "--floor", "0.5", "--json")  # there is one floor on the board: it is taken
    assert json.loads(only.stdout)[0]["matched"] == "U = 0.9 on test"
    said = regrade(*entries[:-1], "--floor", "0.5", code=2).stderr
    assert "--floor: it is the utility of --matched" in said
