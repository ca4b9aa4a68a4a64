"""No file and no row of the table `items` keeps a board from being shown, or changes what is shown of good entries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaderboard.board import files, schema
from leaderboard.board.store import Board
from leaderboard.board.validity import LONGEST_IDS, MOST_ITEMS
from leaderboard.ranking import replicated
from leaderboard.ranking.rank import rank
from tests.leaderboard.test_board_hostile import everything, show
from tests.support.board_rows import (
    TEACHING,
    Row,
    anchor_rows,
    entry_rows,
    fill,
    item_rows,
    runs_of,
    sample_rows,
    tables,
    with_samples,
)
from tests.support.hostile_board import SPEC, good_board, put

pytestmark = pytest.mark.filterwarnings("error")  # numbers that cannot be must not make a library warn

Json = list[dict[str, Any]]
NUMBERS = ("forgetting", "robustness", "robustness_harmonic", "utility", "score", "recovery", "worst_share", "rank")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    good_board(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, paper_tasks: None) -> Json:
    folder = tmp_path_factory.mktemp("good")
    good_board(folder)
    found, said = show(folder)
    assert said == []
    assert [entry["rank"] for entry in found[0]["entries"]] == [1, 2, 3]
    return found


def row_of(**changes: Any) -> Row:
    return {
        "samples": "bad",
        "probe": "forget_qa",
        "metric": "probability",
        "item": ["a", "b", "c"],
        "value": [0.1, 0.2, 0.3],
    } | changes


MANY = [f"q{number}" for number in range(MOST_ITEMS + 1)]
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no samples": ({"samples": None}, "its samples is missing"),
    "an empty probe": ({"probe": ""}, "its probe is empty"),
    "no metric": ({"metric": None}, "its metric is missing"),
    "a long metric": ({"metric": "x" * 70_000}, "its metric has more than"),
    "no items": ({"item": None}, "an item's id is missing"),
    "an empty list": ({"item": [], "value": []}, "an item's id is missing"),
    "an item without id": ({"item": ["a", None, "c"]}, "an item's id is missing"),
    "no values": ({"value": None}, "it has not one value for each item"),
    "a value less": ({"value": [0.1, 0.2]}, "it has not one value for each item"),
    "a value more": ({"value": [0.1] * 4}, "it has not one value for each item"),
    "an item twice": ({"item": ["a", "b", "a"]}, "an item is there twice"),
    "too many items": ({"item": MANY, "value": [0.5] * len(MANY)}, f"it has more than {MOST_ITEMS:,} items"),
    "the same item too often": ({"item": ["a"] * len(MANY), "value": [0.5] * len(MANY)}, "it has more than"),
    "long ids": ({"item": ["a", "b", "x" * LONGEST_IDS]}, f"have more than {LONGEST_IDS:,} bytes"),
    **{
        f"a value of {value}": ({"value": [0.1, value, 0.3]}, "a value is no number that can be")
        for value in (None, math.nan, math.inf, -math.inf, 1e308, -1e101)
    },
}


def test_rows_that_say_nothing_are_named_and_change_nothing(store: Path, good: Json):
    paths = {
        kind: put(store, "items", [row_of(), row_of() | {"samples": "other"} | changes], f"bad{number}")
        for number, (kind, (changes, _)) in enumerate(ROWS.items())
    }
    put(store, "items", [row_of()], "copy")  # the same once more is no contradiction
    found, said = show(store)
    assert found == good
    assert len(said) == len(ROWS)
    for kind, (_, reason) in ROWS.items():
        [sentence] = [line for line in said if line.startswith(f"regrade: {paths[kind]}: ")]
        assert "1 row left out, it is row 1" in sentence and reason in sentence, kind
        assert len(sentence) < 1000 and sentence.isprintable()
    for output in everything(store):
        assert output.stderr.splitlines() == said


def _content(change: Any) -> Any:
    content = schema.to_arrow("items", [row_of()])
    return lambda path: pq.write_table(change(content), path)


def _surrogates(content: pa.Table) -> pa.Table:
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xed\xa0\x80 \xff"], pa.binary()).buffers())
    ids = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), text)
    place = content.schema.get_field_index("item")
    content = content.set_column(place, content.schema.field(place), ids)
    return content.set_column(place + 1, content.schema.field(place + 1), pa.array([[0.5]]))


def _lists(path: Path, items: int) -> None:
    """A row of many equal items, of which a file keeps one and a run length."""
    offsets = pa.array([0, items], pa.int32())
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(items, np.int8)), pa.array(["a"]))
    columns = {name: pa.array([row_of()[name]]) for name in ("samples", "probe", "metric")}
    columns |= {"item": pa.ListArray.from_arrays(offsets, ids)}
    columns |= {"value": pa.ListArray.from_arrays(offsets, pa.array(np.zeros(items)))}
    content = pa.table(columns)
    with pq.ParquetWriter(path, content.schema, store_schema=False, compression="zstd") as writer:
        writer.write_table(content)
        writer.add_key_value_metadata({"table": "items", "schema_version": "1"})


FILES: dict[str, tuple[Any, str]] = {
    "of texts as values": (
        _content(lambda t: t.set_column(4, pa.field("value", pa.list_(pa.string())), [[["0.1", "0.2", "0.3"]]])),
        "its column value is list<",
    ),
    "of one text as items": (_content(lambda t: t.set_column(3, pa.field("item", pa.string()), [["a"]])), "is string"),
    "of ids that are no text": (_content(_surrogates), "it is damaged"),
    "without a key": (_content(lambda t: t.drop(["metric"])), "it lacks the key column metric"),
    "without items": (_content(lambda t: t.drop(["item"])), "an item's id is missing"),
    "without values": (_content(lambda t: t.drop(["value"])), "it has not one value for each item"),
    "of too many items": (lambda path: _lists(path, 11_000_000), "values, and the most is 20,000,000"),
    "of nearly too many items": (lambda path: _lists(path, 9_900_000), f"it has more than {MOST_ITEMS:,} items"),
    "of no bytes": (lambda path: path.write_bytes(b""), "it is cut short"),
    "of a folder": (Path.mkdir, "it is no regular file"),
}


def test_files_that_cannot_be_read_are_named_and_change_nothing(store: Path, good: Json):
    paths = {kind: store / "board" / "items" / f"bad{number}.parquet" for number, kind in enumerate(FILES)}
    for kind, (make, _) in FILES.items():
        make(paths[kind])
    found, said = show(store)
    assert found == good
    assert len(said) == len(FILES)
    for kind, (_, reason) in FILES.items():
        [sentence] = [line for line in said if line.startswith(f"regrade: {paths[kind]}: ")]
        assert "left out, " in sentence and reason in sentence, sentence
        assert "What to do: " in sentence


def test_a_table_that_is_no_folder_costs_the_ranks_and_no_number(store: Path, good: Json):
    (store / "board" / "items").rename(store / "away")
    (store / "board" / "items").symlink_to("items")
    found, said = show(store)
    assert ["items: left out, it cannot be listed" in line for line in said] == [True]
    for entry, wanted in zip(found[0]["entries"], good[0]["entries"], strict=False):
        assert entry["rank"] is None and entry["provisional"]
        assert wanted["score"]["value"] in [pytest.approx(one["score"]["value"]) for one in found[0]["entries"]]


def test_a_file_with_much_text_is_left_out(store: Path, good: Json, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("leaderboard.board.views.TEXT", 100_000)
    path = put(store, "items", [row_of(item=[letter * 50_000 for letter in "abc"])])
    found, said = show(store)
    assert found == good
    assert len(said) == 1 and said[0].startswith(f"regrade: {path}: left out, its rows have 150,0")


@pytest.mark.parametrize("name", ["0", "zz"])
def test_a_row_that_contradicts_one_of_the_board_is_named(store: Path, good: Json, name: str):
    """The first by name counts; where that is the wrong one, its mean gives it away."""
    board = Board(store / "board")
    [first, *_] = board.read("items").to_pylist()
    measured = board.read("measurements", {"samples": first["samples"]}).to_pylist()
    put(store, "items", [first | {"value": [value + 0.001 for value in first["value"]]}], name)
    if name == "0":
        board.append("samples", sample_rows(item_rows(measured)))  # what is right can be made again
    found, said = show(store)
    [sentence] = said
    assert "another row has the same key and other content" in sentence
    if name == "zz":
        assert f"/{name}.parquet: 1 row left out" in sentence and found == good
    for entry, wanted in zip(found[0]["entries"], good[0]["entries"], strict=True):
        assert entry["rank"] == wanted["rank"]
        assert entry["score"]["value"] == pytest.approx(wanted["score"]["value"])


EVIL = "evil anchors"
"""Anchors of somebody's own, with the digests of the good ones: their trials are ranked with the others."""


def evil(entry: str, target: float, retrained: float, changes: Any) -> tuple[list[Row], list[Row], list[Row]]:
    """Three runs with anchors of their own, without an error: trials, measurements, and items as changed."""
    runs = runs_of(entry, 0.9, 0.8, 0.95, anchors=f"{EVIL} {entry}", spec=SPEC, stderr=0.0)
    anchors = [row | {"trial": f"{EVIL} {entry}"} for row in anchor_rows(target, retrained, stderr=0.0)]
    measured = [with_samples(row) for row in [*anchors, *(row for _, rows in runs for row in rows)]]
    items = item_rows(measured)
    names = {row["samples"]: row["subject"] for row in measured}
    return [row for row, _ in runs], measured, [changes(row, names[row["samples"]]) for row in items]


def _beside(row: Row, subject: str) -> Row:
    """Numbers that cancel out: the mean is right, and every other draw of items is far off."""
    first, second, *others = row["value"]
    return row | {"value": [first + 1e12, second - 1e12, *others]} if subject == "target" else row


ANCHORS: dict[str, tuple[float, float, Any]] = {
    "no distance": (0.1, 0.1, lambda row, subject: row),
    "hardly any distance": (0.1 + 2e-17, 0.1, lambda row, subject: row),
    "a denormal distance": (5e-324, 0.0, lambda row, subject: row),
    "a huge distance": (1e99, 0.1, lambda row, subject: row),
    "the wrong way round": (0.1, 0.9, lambda row, subject: row),
    "items that cancel out": (0.9, 0.1, _beside),
    "one item": (0.9, 0.1, lambda row, subject: row | {"item": ["a"], "value": [float(np.mean(row["value"]))]}),
    "items that are all zero but one": (
        *(0.9, 0.1),
        lambda row, subject: row | {"value": [sum(row["value"]), *[0.0] * (len(row["value"]) - 1)]},
    ),
}


def test_anchors_that_cannot_be_cost_only_their_own_entries(store: Path, good: Json):
    board = Board(store / "board")
    for kind, (target, retrained, changes) in ANCHORS.items():
        trials, measured, items = evil(kind, target, retrained, changes)
        board.append("trials", trials)
        board.append("items", items)
        board.append("measurements", measured)
    [ranking], said = show(store)
    assert said == []
    found = {entry["entry"]: entry for entry in ranking["entries"]}
    assert found.keys() == {*ANCHORS, "first", "second", "third"}
    for wanted in good[0]["entries"]:
        entry = found[wanted["entry"]]
        for name in NUMBERS[:-1]:
            assert entry[name] == wanted[name]
        assert entry["rank"] >= wanted["rank"]
    for entry in found.values():
        for name in NUMBERS[:5]:
            number = entry[name]
            assert number["value"] is None or 0 <= number["value"] <= 1
            if number["interval"]:
                assert 0 <= number["interval"][0] <= number["value"] <= number["interval"][1] <= 1
    resolution = ranking["verdict"]["resolution"]
    assert resolution["difference"] is not None and math.isfinite(resolution["difference"])
    for output in everything(store):
        assert output.stderr == ""


def test_samples_of_no_use_cost_their_own_entry(store: Path, good: Json):
    """Entries without items, with samples that cannot be scored, are too many, or take long to compare."""
    row, rows = entry_rows("bad", 0.95, 0.9, 0.99, spec=SPEC)
    measured = [with_samples(one) for one in rows]
    keys = [(one["samples"], one["probe"]) for one in measured]
    sample = {"reference": "x", "token_logprobs": [0.0], "token_correct": [True]}
    wrong = [
        sample | {"token_logprobs": None},
        sample | {"token_logprobs": [math.nan], "token_correct": [True, True]},
        sample | {"reference": "a b " * 500_000, "generated": "b a " * 500_000},
        sample | {"token_logprobs": []},
    ]
    samples = [
        {"samples": key, "probe": probe, "item": f"q{number}"} | one
        for (key, probe), one in zip(keys, wrong, strict=False)
        for number in range(2)
    ]
    put(store, "trials", [row])
    put(store, "measurements", measured)
    put(store, "samples", samples)
    [ranking], said = show(store)
    assert said == []
    found = {entry["entry"]: entry for entry in ranking["entries"]}
    bad = found.pop("bad")
    assert bad["rank"] is None and bad["provisional"] and bad["score"]["value"] is not None
    assert [found[entry["entry"]] for entry in good[0]["entries"]] == [
        entry | {"pareto": found[entry["entry"]]["pareto"]} for entry in good[0]["entries"]
    ]


def test_more_samples_than_a_probe_has_items_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("leaderboard.board.items.MOST_ITEMS", 60)
    good = runs_of("good", 0.9, 0.8, 0.95)
    bad = runs_of("bad", 0.8, 0.7, 0.95)
    measured = [with_samples(row) for row in [*anchor_rows(), *(row for _, rows in [*good, *bad] for row in rows)]]
    samples = sample_rows(item_rows(measured))
    crowded = with_samples(bad[0][1][0])["samples"]
    [some, *_] = [row for row in samples if row["samples"] == crowded]
    samples += [some | {"item": f"more {number}"} for number in range(10_000)]
    board = Board(tmp_path)
    board.append("trials", [row for row, _ in [*good, *bad]])
    board.append("measurements", measured)
    board.append("samples", samples)
    found = rank(board, "paper")
    assert [(entry.entry, entry.rank) for entry in found.entries] == [("good", 1), ("bad", None)]


def test_a_curve_of_a_thousand_points_is_shown_and_not_compared():
    runs = runs_of("long", 0.9, 0.8, 0.95)
    points = range(1, replicated.MOST_CELLS + 2)
    [taught] = [row for row in anchor_rows() if row["attack"] == TEACHING[0]]
    anchors = [*anchor_rows(), *(taught | {"point": point} for point in points)]
    shared = {"samples": "one evaluation for all", "value": 0.1}
    long = [
        (trial, [*rows, *(rows[1] | shared | {"point": point, "attack": TEACHING[0]} for point in points)])
        for trial, rows in runs
    ]
    anchors = [row | ({"samples": "taught"} if row["point"] else {}) for row in anchors]
    found = rank(tables(*long, *runs_of("short", 0.7, 0.6, 0.95), anchors=anchors), "paper")
    entries = {entry.entry: entry for entry in found.entries}
    assert entries["long"].rank is None and entries["long"].score.value is not None
    assert entries["long"].notes == ("not compared: more than 1,000 numbers are behind its robustness",)


def test_there_is_an_end_to_the_questions_that_are_drawn_again(monkeypatch: pytest.MonkeyPatch):
    world = tables(*runs_of("a", 0.9, 0.8, 0.95))
    assert rank(world, "paper").entries[0].rank == 1
    monkeypatch.setattr(replicated, "MOST_ITEMS", 95)  # two probes of 48
    [entry] = rank(world, "paper").entries
    assert entry.rank is None
    assert entry.notes == ("not compared: more than 95 questions in all would be drawn again",)


def test_a_file_of_items_has_fewer_values_than_the_limit_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a board writes itself is far below the limits: a trial's attack has thousands of values."""
    board = Board(tmp_path)
    fill(board, [], [*anchor_rows(), *(row for _, rows in runs_of("a", 0.9, 0.8, 0.95) for row in rows)])
    [path] = (tmp_path / "items").iterdir()
    metadata = pq.read_metadata(path)
    values = sum(metadata.row_group(0).column(index).num_values for index in range(5))
    monkeypatch.setattr(files, "VALUES", values)
    assert Board(tmp_path).broken() == []
