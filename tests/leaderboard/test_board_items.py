"""What headlines are means of, item by item: written by a trial, made from samples where a board lacks it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.board import schema
from leaderboard.board.items import Key, item_row, read_items, scored_items
from leaderboard.board.store import Board
from leaderboard.board.validity import MOST_ITEMS
from leaderboard.ranking.entry import HEADLINES
from leaderboard.ranking.rank import Ranking, rank
from leaderboard.ranking.replicated import NO_ITEMS
from leaderboard.ranking.synthetic import SYNTHETIC, synthetic_key
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.trials.run import run_trial
from tasks import Split
from tasks.task import Sample
from tests.support.board_rows import (
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    item_rows,
    runs_of,
    sample_rows,
    with_samples,
)
from tests.support.disks import mounted
from tests.support.hostile_board import put
from tests.support.small import SMALL

WITHOUT = "provisional: the answers to single questions are not on this board, so it cannot be compared"


def named(measurements: list[Row]) -> dict[Key, set[float]]:
    """The rows of items that headlines of single splits name, with the headlines."""
    return {
        Key(row["samples"], row["probe"], row["metric"]): {row["value"]}
        for row in measurements
        if row["headline"] and row["split"] != "all" and row["value"] is not None
    }


def made_up(measurements: list[Row]) -> set[Key]:
    """The rows of items of the models that do not exist, which answer what the target was asked."""
    target = [row for row in measurements if row["subject"] == "target" and row["attack"] == "none"]
    return {synthetic_key(name, key) for key in named(target) for name in SYNTHETIC}


def items_of_models(board: Board) -> list[Row]:
    """Rows of the table `items`, without those of models that do not exist."""
    synthetic = {key.samples for key in made_up(board.read("measurements").to_pylist())}
    return [row for row in board.read("items").to_pylist() if row["samples"] not in synthetic]


@pytest.fixture(scope="module")
def real(warm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Board:
    """The board of a real trial with a small model."""
    store = Store(shutil.copytree(warm_store, tmp_path_factory.mktemp("real") / "store"))
    relearn = {"name": "relearn", "samples": 4, "steps": 2, "lr": 1e-3, "points": 2}
    few = MeasureSpec(attacks=({"name": "rtn", "bits": 4}, relearn), splits=(Split.DEV, Split.TEST), limit=4)
    run_trial(trial(SMALL), store, measure=few)
    return store.board


def test_a_trial_writes_what_its_headlines_are_means_of(real: Board):
    measurements = real.read("measurements").to_pylist()
    wanted = named(measurements)
    every = scored_items(real.read("items"))
    found = {key: scored for key, scored in every.items() if key in wanted}
    assert found.keys() == wanted.keys() and len(found) > 20
    assert every.keys() - found.keys() == made_up(measurements)
    sizes = {Key(row["samples"], row["probe"], row["metric"]): row["n"] for row in measurements}
    for key, (items, values, _) in found.items():
        [measured] = wanted[key]
        assert math.fsum(values) / len(values) == measured
        assert len(items) == len(set(items)) == sizes[key] and list(items) == sorted(items)
    # All models were asked the same questions of a probe.
    splits = {row["samples"]: row["split"] for row in measurements if row["split"] != "all"}
    asked = {(splits[key.samples], key.probe): items for key, (items, *_) in found.items()}
    assert all(asked[splits[key.samples], key.probe] == items for key, (items, *_) in found.items())
    assert real.broken() == []


def test_a_board_from_before_the_table_is_filled_from_its_samples(real: Board, tmp_path: Path):
    wanted = named(real.read("measurements").to_pylist())
    written = scored_items(schema.to_arrow("items", items_of_models(real)))
    boards = [Board(shutil.copytree(real.path, tmp_path / name)) for name in ("one", "two")]
    for board in boards:
        shutil.rmtree(board.path / "items")
        found = read_items(board, wanted)
        assert found.keys() == written.keys()
        for key, (items, values, _) in found.items():
            assert items == written[key].items and np.array_equal(values, written[key].values)
        assert board.read("items").to_pylist() == items_of_models(real)
    # The same bytes under the same name, whoever fills it.
    files = [{path.name: path.read_bytes() for path in (board.path / "items").iterdir()} for board in boards]
    assert files[0] == files[1] and len(files[0]) == 1
    shutil.rmtree(boards[0].path / "samples")  # from now on it needs none
    assert read_items(Board(boards[0].path), wanted).keys() == written.keys()


def test_a_trial_writes_what_empty_answers_give(real: Board, tmp_path: Path):
    """Made again from the samples, they are the same: a board of today shows them without reading any sample."""
    old, new = (Board(shutil.copytree(real.path, tmp_path / name)) for name in ("old", "new"))
    shutil.rmtree(old.path / "items")
    before = {path.name for path in (new.path / "items").iterdir()}
    for board in (old, new):
        rank(board, "pocket")
    keys = made_up([row for row in real.read("measurements").to_pylist() if row["split"] == "test"])
    written, made = (scored_items(board.read("items")) for board in (real, old))
    assert keys <= made.keys() and all(np.array_equal(made[key].values, written[key].values) for key in keys)
    assert {path.name for path in (new.path / "items").iterdir()} == before


def test_the_same_rows_are_the_same_bytes_in_any_order(tmp_path: Path):
    rows = item_rows([*anchor_rows(), *(row for _, of in runs_of("a", 0.9, 0.8, 0.95) for row in of)], noise=0.2)
    files = []
    for number, order in enumerate((rows, rows[::-1])):
        path = Board(tmp_path / str(number)).append("items", order).path
        files.append((path.name, path.read_bytes()))
    assert files[0] == files[1]


WORLD = [*runs_of("a", 0.9, 0.8, 0.95), *runs_of("b", 0.8, 0.4, 0.97)]


def old_board(path: Path, with_ids: bool = True) -> Board:
    """A board without the table; its measurements have samples, if `with_ids`."""
    board = Board(path)
    measurements = [*anchor_rows(), *(row for _, rows in WORLD for row in rows)]
    measurements = [with_samples(row) for row in measurements] if with_ids else measurements
    board.append("trials", [row for row, _ in WORLD])
    board.append("measurements", measurements)
    if with_ids:
        board.append("samples", sample_rows(item_rows(measurements)))
    return board


def numbers(ranking: Ranking) -> list[Any]:
    return [(entry.entry, entry.rank, *(getattr(entry, name).value for name in HEADLINES)) for entry in ranking.entries]


@pytest.fixture
def whole(tmp_path: Path) -> Ranking:
    """The ranking of the same world with its items."""
    board = Board(tmp_path / "whole")
    fill(board, [row for row, _ in WORLD], [*anchor_rows(), *(row for _, rows in WORLD for row in rows)])
    return rank(board, "paper")


def test_an_old_board_is_ranked_and_filled_once(tmp_path: Path, whole: Ranking):
    board = old_board(tmp_path / "old")
    found = rank(board, "paper")
    for one, other in zip(numbers(found), numbers(whole), strict=True):
        assert one[:2] == other[:2] and one[2:] == pytest.approx(other[2:])
    assert [entry.rank for entry in found.entries] == [1, 2]
    before = {path: path.read_bytes() for path in (board.path / "items").iterdir()}
    assert len(before) == 2  # of the models, and of those that do not exist
    shutil.rmtree(board.path / "samples")
    again = rank(Board(board.path), "paper")
    assert again == found
    assert {path: path.read_bytes() for path in (board.path / "items").iterdir()} == before


def test_a_board_that_cannot_be_written_is_ranked_all_the_same(tmp_path: Path, whole: Ranking):
    board = old_board(tmp_path / "old")
    with mounted(tmp_path / "disk", "--bind", "-o", "ro", str(board.path)) as folder:
        with pytest.raises(OSError, match="Read-only"):
            (folder / "x").touch()
        found = rank(Board(folder), "paper")
        assert not (folder / "items").exists()
    assert [entry.rank for entry in found.entries] == [1, 2]
    assert [one[:2] for one in numbers(found)] == [one[:2] for one in numbers(whole)]


def test_a_full_disk_costs_the_fill_and_not_the_ranking(tmp_path: Path):
    board = old_board(tmp_path / "old")
    (board.path / "items").touch()  # no folder can be made here, as on a disk without room
    found = rank(board, "paper")
    assert [entry.rank for entry in found.entries] == [1, 2]


def test_what_has_no_samples_is_provisional_and_says_why(tmp_path: Path):
    found = rank(old_board(tmp_path / "old", with_ids=False), "paper")
    assert [(entry.entry, entry.rank, entry.provisional) for entry in found.entries] == [
        ("a", None, WITHOUT),
        ("b", None, WITHOUT),
    ]
    for entry in found.entries:
        assert entry.notes == (NO_ITEMS,)
        assert entry.score.value == entry.score.plain and entry.score.interval is None
        assert entry.replicated is None and entry.worst_share == {}
    assert (found.verdict.ranked, found.verdict.provisional, found.verdict.resolution) == (0, 2, None)
    assert found.verdict.sentences() == [
        "2 entries are provisional: shown and not ranked. A rank takes three runs that differ in their seed, five are "
        "recommended, and the answers to single questions."
    ]


def test_one_seed_without_items_makes_its_entry_provisional_and_no_other(tmp_path: Path):
    board = Board(tmp_path)
    for number, (row, rows) in enumerate(WORLD):
        if number == 0:
            board.append("trials", [row])
            board.append("measurements", rows)
        else:
            fill(board, [row], rows)
    fill(board, [], anchor_rows())
    found = rank(board, "paper")
    assert [(entry.entry, entry.rank, entry.provisional) for entry in found.entries] == [
        ("b", 1, None),
        ("a", None, WITHOUT),
    ]


def test_one_run_and_two_are_provisional_and_three_are_ranked(tmp_path: Path):
    for runs, why in ((1, "one run"), (2, "two runs"), (3, None)):
        board = Board(tmp_path / str(runs))
        entries = [*runs_of("few", 0.9, 0.9, 1.0, runs), *runs_of("b", 0.5, 0.4, 0.95)]
        fill(board, [row for row, _ in entries], [*anchor_rows(), *(row for _, rows in entries for row in rows)])
        found = {entry.entry: entry for entry in rank(board, "paper").entries}
        assert found["few"].provisional == (why and f"provisional: {why}, and a rank takes 3")
        assert (found["few"].rank, found["b"].rank) == ((None, 1) if why else (1, 2))
        assert found["few"].score.value == pytest.approx(3 / (2 / 0.9 + 1))
        assert found["few"].score.interval is not None


# A row that does not say what it should: each changes a row of items of a good trial, or of an anchor.


def shifted(row: Row) -> Row:
    return row | {"value": [value + 0.01 for value in row["value"]]}


def renamed(row: Row) -> Row:
    return row | {"item": [f"other {item}" for item in row["item"]]}


def of_another(row: Row) -> Row:
    """Right values of another evaluation."""
    return row | {"value": [value / 2 for value in row["value"]]}


def huge(row: Row) -> Row:
    return row | {"value": [1e99, -1e99, *row["value"][2:]]}


@pytest.mark.parametrize("change", [shifted, of_another, huge])
@pytest.mark.parametrize("subject", ["unlearned", "target", "retrained"])
def test_items_that_do_not_give_their_number_are_made_again(tmp_path: Path, whole: Ranking, change: Any, subject: str):
    board = old_board(tmp_path / "board")
    measurements = board.read("measurements", {"subject": subject}).to_pylist()
    put(tmp_path, "items", [change(row) for row in item_rows(measurements)], "0")
    found = rank(board, "paper")
    assert [one[:2] for one in numbers(found)] == [one[:2] for one in numbers(whole)]
    for one, other in zip(numbers(found), numbers(whole), strict=True):
        assert one[2:] == pytest.approx(other[2:])


@pytest.mark.parametrize("change", [shifted, renamed, of_another, huge])
def test_without_samples_wrong_items_cost_their_entry_its_rank_and_no_other(tmp_path: Path, change: Any):
    board = Board(tmp_path / "board")
    measured = [with_samples(row) for row in [*anchor_rows(), *(row for _, rows in WORLD for row in rows)]]
    wrong = {row["samples"] for row in measured if row["trial"] == WORLD[0][0]["trial"]}
    items = [change(row) if row["samples"] in wrong else row for row in item_rows(measured)]
    board.append("trials", [row for row, _ in WORLD])
    board.append("measurements", measured)
    board.append("items", items)
    found = rank(board, "paper")
    assert [(entry.entry, entry.rank, entry.provisional) for entry in found.entries] == [
        ("b", 1, None),
        ("a", None, WITHOUT),
    ]
    [note] = found.entries[1].notes
    assert note.startswith("not compared: ")
    assert ("was asked other questions" in note) is (change is renamed)


def test_a_metric_that_nobody_knows_is_no_reason_to_stop(tmp_path: Path):
    board = old_board(tmp_path)
    trial_row, rows = entry_rows("odd", 0.9, 0.8, 0.95)
    rows = [with_samples(row | {"metric": "no such metric"}) for row in rows]
    board.append("trials", [trial_row])
    board.append("measurements", rows)
    board.append("samples", sample_rows(item_rows(rows)))
    found = rank(board, "paper")
    assert [(entry.entry, entry.rank) for entry in found.entries] == [("a", 1), ("b", 2), ("odd", None)]


def test_a_number_of_a_point_that_no_attack_has_changes_nothing(tmp_path: Path, whole: Ranking):
    board = old_board(tmp_path / "old")
    [row] = board.read(
        "measurements", {"trial": WORLD[0][0]["trial"], "attack": "none", "probe": "forget_qa"}
    ).to_pylist()
    board.append("measurements", [row | {"point": 7, "value": 0.9}])
    assert [one[:2] for one in numbers(rank(board, "paper"))] == [one[:2] for one in numbers(whole)]


def samples_of(values: list[float | None]) -> Iterator[Sample]:
    for place, value in enumerate(values):
        logprobs = None if value is None else (value,)
        yield Sample(f"q{place:06}", "x", token_logprobs=logprobs, token_correct=(True,))


@pytest.mark.parametrize(
    "values",
    [[], [None], [-1.0, None], [-1.0, math.nan], [-1.0] * (MOST_ITEMS + 1)],
    ids=["none", "nothing", "a gap", "no number", "too many"],
)
def test_there_is_no_row_without_a_number_for_each_of_a_few_items(values: list[float | None]):
    assert item_row(Key("s", "p", "probability"), samples_of(values)) is None


def test_the_items_of_a_row_are_sorted_and_their_mean_is_the_number():
    row = item_row(Key("s", "p", "probability"), reversed(list(samples_of([-1.0, -2.0, 0.0]))))
    assert row["item"] == ["q000000", "q000001", "q000002"]
    assert row["value"] == pytest.approx([math.exp(-1), math.exp(-2), 1.0])


def test_an_attack_with_another_question_is_not_compared(tmp_path: Path):
    """The retrained model was asked one question less under one attack: its numbers are of other questions."""
    board = Board(tmp_path)
    measured = [with_samples(row) for row in [*anchor_rows(), *(row for _, rows in WORLD for row in rows)]]
    [fewer] = [row["samples"] for row in measured if (row["subject"], row["attack"]) == ("retrained", TEACHING[1])]
    items = item_rows(measured)
    for row in items:
        if row["samples"] == fewer:
            row |= {"item": row["item"][1:], "value": [0.1] * (len(row["item"]) - 1)}
    board.append("trials", [row for row, _ in WORLD])
    board.append("measurements", measured)
    board.append("items", items)
    found = rank(board, "paper")
    assert [entry.rank for entry in found.entries] == [None, None]
    assert {note for entry in found.entries for note in entry.notes} == {
        "not compared: the retrained model was asked other questions of forget_qa"
    }
