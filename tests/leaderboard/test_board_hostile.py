"""One bad file or row never keeps the rest of a board from being shown: it is left out, and a sentence names it."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaderboard.board.store import Board
from tests.support.board_rows import TEACHING
from tests.support.command import Output, regrade
from tests.support.hostile_board import BOMBS, FILES, bad_entry, good_board, put, put_table, trials_table

pytestmark = pytest.mark.filterwarnings("error")  # numbers that cannot be must not make a library warn

TRIAL = bad_entry()[0]["trial"]
DEEP = "[" * 100_000
LONG = "x" * 5_000_000
MANY_DIGITS = "9" * 5_000

Json = list[dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    good_board(tmp_path)
    return tmp_path


def show(store: Path) -> tuple[Json, list[str]]:
    """The ranking as JSON, and what was said beside it."""
    said = regrade("board", "show", "--store", store, "--json")
    return json.loads(said.stdout), said.stderr.splitlines()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, paper_tasks: None) -> Json:
    """What is shown of the good board alone."""
    folder = tmp_path_factory.mktemp("good")
    good_board(folder)
    found, said = show(folder)
    assert said == []
    assert [entry["entry"] for entry in found[0]["entries"]] == ["first", "second", "third"]
    return found


def everything(store: Path) -> list[Output]:
    """All that the command shows of a board."""
    verbs = [["board", "show", "--store", store], ["board", "page", "--store", store]]
    verbs += [["report", store, *how] for how in ([], ["--json"], ["--markdown"])]
    return [regrade(*words) for words in verbs]


@pytest.mark.parametrize("kind", FILES | BOMBS)
def test_a_file_that_cannot_be_read_is_named_and_changes_nothing(store: Path, good: Json, kind: str):
    name = ascii((FILES | BOMBS)[kind](store).stem)[1:-1]
    found, said = show(store)
    assert found == good
    [sentence] = said
    assert sentence.isprintable() and sentence.startswith(f"regrade: {store}/board/trials/")
    assert "left out, " in sentence and "What to do: " in sentence
    assert name.encode().decode("unicode_escape").split("\n")[0] in sentence


def test_all_of_them_at_once_leave_the_rest_to_be_shown(store: Path, good: Json):
    for number, make in enumerate(FILES.values()):
        path = make(store)
        path.rename(path.with_name(f"{number}{path.name}"))
    found, said = show(store)
    assert (found, len(said)) == (good, len(FILES))
    for output in everything(store):
        assert len(output.stderr.splitlines()) == len(FILES)
    assert "first" in (store / "board.html").read_text()
    assert (store / "report" / "paper-front.svg").exists()


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    **{f"no {name}": ({name: None}, f"its {name} is missing") for name in ("trial", "entry", "task", "status", "seed")},
    **{f"no {name}": ({name: None}, f"its {name} is missing") for name in ("task_version", "anchors", "anchor_ids")},
    **{f"an empty {name}": ({name: ""}, f"its {name} is empty") for name in ("trial", "entry", "task")},
    **{f"a long {name}": ({name: LONG}, f"its {name} has more than") for name in ("trial", "task", "spec", "reason")},
    "an unknown status": ({"status": "splendid"}, "its status is none of ok"),
    "a status of measurements": ({"status": "null"}, "its status is none of ok"),
    "a negative seed": ({"seed": -1}, "its seed is not between"),
    "a huge seed": ({"seed": 2**62}, "its seed is not between"),
    "an absurd task version": ({"task_version": 2**62}, "its task_version is not between"),
    "anchors without a colon": ({"anchor_ids": "target"}, "its anchor_ids are not"),
    "anchors without a name": ({"anchor_ids": ":"}, "its anchor_ids are not"),
    "an endless cost": ({"unlearn_seconds": math.inf}, "its unlearn_seconds are"),
    "no number as a cost": ({"unlearn_seconds": math.nan}, "its unlearn_seconds are"),
    "a negative cost": ({"value_calls": -(2**63)}, "its value_calls is not between"),
    "a ratio beyond 1": ({"zo_ratio": 1e308}, "its zo_ratio is not between"),
}
"""Trials that are left out: what is changed, and the reason."""


@pytest.mark.parametrize("kind", ROWS)
def test_a_trial_that_says_nothing_is_named_and_changes_nothing(store: Path, good: Json, kind: str):
    changes, reason = ROWS[kind]
    path = put(store, "trials", [bad_entry(**changes)[0]])
    found, said = show(store)
    assert found == good
    [sentence] = said
    assert sentence.startswith(f"regrade: {path}: 1 row left out, it is row 0") and reason in sentence
    assert ("trial" in changes) or f"(trial {TRIAL})" in sentence


MEASURED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"no {name}": ({name: None}, f"its {name} is missing")
        for name in ("trial", "subject", "attack", "engine", "metric", "split", "status", "task", "point")
    },
    **{f"an empty {name}": ({name: ""}, f"its {name} is empty") for name in ("probe", "engine")},
    "a value of inf": ({"value": math.inf}, "its value is not finite"),
    "a value of nan": ({"value": math.nan}, "its value is not finite"),
    "no value that is ok": ({"value": None, "status": "ok"}, "its value is missing"),
    **{f"an error of {x}": ({"stderr": x}, "its stderr is not") for x in (-1.0, math.inf, math.nan)},
    **{f"{n} examples": ({"n": n}, "its n is not between") for n in (-1, 2**62)},
    **{f"chance at {x}": ({"chance": x}, "its chance is no") for x in (1e308, math.nan)},
    "an unknown direction": ({"direction": "sideways"}, "its direction is none of"),
    "an unknown headline": ({"headline": "fame"}, "its headline is none of"),
    "an unknown status": ({"status": "diverged"}, "its status is none of"),
    "an unknown split": ({"split": "train"}, "its split is none of"),
    "a long attack": ({"attack": LONG}, "its attack has more than"),
}
"""Measurements that are left out."""


@pytest.mark.parametrize("kind", MEASURED)
def test_a_measurement_that_says_nothing_is_named_and_changes_nothing(store: Path, good: Json, kind: str):
    changes, reason = MEASURED[kind]
    rows = bad_entry()[1]
    path = put(store, "measurements", [rows[0] | changes, *rows[1:3]])
    found, said = show(store)
    assert found == good
    [sentence] = said
    assert sentence.startswith(f"regrade: {path}: 1 row left out, it is row 0") and reason in sentence


ABSURD: dict[str, dict[str, Any]] = {
    "a huge value": {"value": 1e308},
    "a huge negative value": {"value": -1e308},
    "a huge error": {"stderr": 1e308},
    "a large value": {"value": 1e99},
    "a denormal": {"value": 5e-324, "stderr": 5e-324},
    "no examples": {"n": 0},
    "chance at the target": {"chance": 0.9},
    "a point that cannot be reached": {"point": 2**53},
}


@pytest.mark.parametrize("kind", ABSURD)
def test_a_number_that_cannot_be_costs_its_own_entry_at_most(store: Path, good: Json, kind: str):
    row, rows = bad_entry()
    put(store, "trials", [row])
    put(store, "measurements", [one | ABSURD[kind] if one["attack"] == TEACHING[0] else one for one in rows])
    [ranking], said = show(store)
    assert said == []
    numbers = {entry["entry"]: entry for entry in ranking["entries"]}
    bad = numbers.pop("bad")
    for entry in good[0]["entries"]:
        for name in ("forgetting", "robustness", "utility", "score", "recovery"):
            assert numbers[entry["entry"]][name] == entry[name]
    if "huge" in kind:
        assert bad["robustness"]["value"] is None and "which cannot be" in bad["reason"]


def test_numbers_that_cannot_be_are_shown_everywhere(store: Path):
    for number, changes in enumerate(ABSURD.values()):
        row, rows = bad_entry(entry=f"bad{number}", trial=f"bad{number}")
        put(store, "trials", [row], f"bad{number}")
        rows = [one | {"trial": row["trial"]} for one in rows]
        changed = [one | changes if one["attack"] == TEACHING[0] else one for one in rows]
        put(store, "measurements", changed, f"bad{number}")
    for output in everything(store):
        assert output.stderr == ""
        assert " inf" not in output.stdout and "nan" not in output.stdout


def test_another_row_with_a_key_of_the_board_is_left_out_and_said(store: Path, good: Json):
    board = Board(store / "board")
    [row] = board.read("measurements", {"subject": "target", "headline": "knowledge"}).to_pylist()
    for number, time_of_writing in enumerate(("2027-01-01T00:00:00Z", None, "", "0000-00-00", "\x00")):
        path = put(store, "measurements", [row | {"value": 0.1, "written_at": time_of_writing}], f"bad{number}")
        found, said = show(store)
        assert found == good
        assert said[number].startswith(f"regrade: {path}: 1 row left out, ")
        assert "another row has the same key and other content" in said[number]
    again = {"status": "failed", "value": None, "reason": "out of memory"}
    put(store, "measurements", [row | again], "again")
    assert len(show(store)[1]) == 5


def test_a_task_that_nobody_knows_is_named_with_its_file(store: Path, good: Json):
    for task in ("imaginary", "wmdp/../../etc", "<b>paper</b>\x1b]0;title\x07", "wmdp/\u202enip", "\n\n", "[/red]"):
        path = put(store, "trials", [bad_entry(task=task)[0]])
        found, said = show(store)
        assert found == good
        [sentence] = said
        assert sentence.startswith(f"regrade: {path}: its trials of task ") and sentence.isprintable()


SPECS = {
    "nothing": None,
    "no JSON": "{",
    "a list": "[1, 2]",
    "a text": '"x"',
    "deep": DEEP,
    "deep in a list": '{"a": ' + "[" * 900 + "]" * 900 + "}",
    "deep in objects": '{"a": ' * 900 + "1" + "}" * 900,
    "digits": f'{{"a": {MANY_DIGITS}}}',
    "repeated": '{"optimizer": {"name": "a"}, "optimizer": 1}',
    "not finite": '{"optimizer": {"name": NaN, "lr": Infinity}}',
    "half a character": '{"optimizer": {"name": "\\ud800", "lr": "\\u001b[2J"}}',
}


def test_damaged_specs_cost_labels_and_knobs_nothing_but_themselves(store: Path, good: Json):
    for number in range(10):  # enough trials for knobs
        row, rows = bad_entry(spec=json.dumps({"optimizer": {"lr": number % 3}, "steps": 40}), entry=f"e{number}")
        trial = row["trial"] + str(number)
        put(store, "trials", [row | {"trial": trial}], f"e{number}")
        measured = [one | {"trial": trial, "value": one["value"] - number / 100} for one in rows]
        put(store, "measurements", measured, f"e{number}")
    [before] = json.loads(regrade("report", store, "--json").stdout)
    assert "optimizer.lr" in {knob["key"] for knob in before["knobs"]}
    for number, spec in enumerate(SPECS.values()):
        row, rows = bad_entry(entry=f"bad{number}", spec=spec)
        put(store, "trials", [row | {"trial": f"bad{number}"}], f"bad{number}")
        put(store, "measurements", [one | {"trial": f"bad{number}"} for one in rows], f"bad{number}")
    [after] = json.loads(regrade("report", store, "--json").stdout)
    assert {knob["key"] for knob in after["knobs"]} >= {knob["key"] for knob in before["knobs"]}
    assert len(after["ranking"]["entries"]) == len(before["ranking"]["entries"]) + len(SPECS)
    for output in everything(store):
        assert output.stderr == ""


def test_a_column_that_looks_like_sql_is_not_read(store: Path, good: Json):
    content = trials_table(status="failed", entry="first").append_column('x"; DROP VIEW trials; --', pa.array(["x"]))
    put_table(store, "trials", content)
    assert show(store)[1] == []


def test_a_file_that_changes_and_vanishes_while_it_is_read_stops_nothing(store: Path, good: Json):
    path, done = store / "board" / "trials" / "bad.parquet", threading.Event()
    pq.write_table(trials_table(), store / "whole")
    whole = (store / "whole").read_bytes()

    def change() -> None:
        number = 0
        while not done.is_set():
            number += 1
            path.write_bytes([whole, whole[:-40], b"", whole[:200] + bytes(100) + whole[300:]][number % 4])
            time.sleep(0.001)
            if number % 7 == 0:
                path.unlink()

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(4):
            [ranking], _ = show(store)
            for entry, wanted in zip(ranking["entries"], good[0]["entries"], strict=False):
                assert entry["score"] == wanted["score"]
    finally:
        done.set()
        writer.join()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(store: Path, good: Json):
    path = put(store, "trials", [bad_entry()[0]])
    path.chmod(0)
    found, said = show(store)
    assert found == good and "it cannot be opened (Permission denied)" in said[0]


def test_a_board_whose_tables_are_no_folders_has_no_trials(tmp_path: Path):
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "trials").symlink_to("trials")
    said = regrade("board", "show", "--store", tmp_path, code=2).stderr.splitlines()
    assert "board/trials: left out, it cannot be listed" in said[0] and "no trials" in said[1]


def test_names_that_are_no_text_are_told(tmp_path: Path, good: Json):
    good_board(tmp_path / "store")
    put(tmp_path / "store", "trials", [bad_entry()[0]]).rename(
        tmp_path / "store" / "board" / "trials" / os.fsdecode(b"bad\xff.parquet")
    )
    found, said = show(tmp_path / "store")
    assert found == good
    assert "/bad\\udcff.parquet: left out, its name has other characters" in said[0]
    (tmp_path / "store").rename(tmp_path / os.fsdecode(b"st\xffre"))
    said = regrade("board", "show", "--store", tmp_path / os.fsdecode(b"st\xffre"), code=1).stderr
    assert "/st\\udcffre/board: this name is no text in UTF-8. What to do: rename the folder" in said
