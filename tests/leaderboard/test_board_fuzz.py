"""Any column of any row replaced by anything: what is shown of the other entries stays as it is."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.board import schema
from tests.leaderboard.test_board_visible import CONTROLS, EVIL
from tests.support.board_rows import ATTACKS, ENGINE, entry_rows, item_rows, matching_row, with_samples
from tests.support.command import regrade
from tests.support.hostile_board import GOOD, good_board, put

pytestmark = pytest.mark.filterwarnings("error")

NUMBERS = ("forgetting", "robustness", "robustness_harmonic", "utility", "score", "recovery", "curves", "failed")
TEXTS = [
    *EVIL.values(),
    *("", " ", "0", "null", "ok", "failed", "diverged", "unchanged", "stopped", "paper", "wide", "pocket", "custom/x"),
    *("target", "retrained", "unlearned", "dev", "test", "all", "forget", "knowledge", "utility", "up", "first"),
    *("target:retrained", "target:chance", ":", "a:b:c", "raw", "uwc[floor=0.9]", "uwc[floor=1e400]", "uwc[floor=nan]"),
    *("mixed[share=0.5]", "mixed[share=nan]", "curve[floor=0.9]", "curve[floor=1e400]"),
    *("{}", "[]", '{"a": 1}', '{"a": NaN}', "[" * 5_000, "9" * 5_000, "'; DROP TABLE trials; --", "x" * 70_000),
    *(ENGINE, *ATTACKS, "relearn[", "rtn[bits=2],", "mixture", "mixing_weight", "2026-01-01T00:00:00Z", "9999"),
]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 5e-324, 1e-300, 1e9, 1e99, -1e99, 1e308, -1e308, math.inf, -math.inf, math.nan]
INTEGERS = [0, 1, 2, -1, 7, 2**31, 2**53, 2**62, -(2**63), 2**63 - 1]


def _values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_string(kind):
        return st.none() | st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    if pa.types.is_int64(kind):
        return st.none() | st.sampled_from(INTEGERS) | st.integers(-(2**63), 2**63 - 1)
    if pa.types.is_float64(kind):
        return st.none() | st.sampled_from(FLOATS) | st.floats()
    if pa.types.is_list(kind):
        return st.none() | st.lists(_values(kind.value_type), max_size=4)
    return st.none() | st.booleans()


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, int, dict[str, Any]]:
    """A table, the number of a row, and what is changed in it. That a trial is one of a good entry is its right."""
    table = draw(st.sampled_from(["trials", "measurements", "items"]))
    columns = [field for field in schema.TABLES[table] if (table, field.name) != ("trials", "entry")]
    chosen = draw(st.lists(st.sampled_from(columns), min_size=1, max_size=3, unique_by=lambda field: field.name))
    return table, draw(st.integers(0, 50)), {field.name: draw(_values(field.type)) for field in chosen}


def shown(store: Path) -> dict[str, dict[str, Any]]:
    """The numbers of the good entries, after everything was shown."""
    outputs = [regrade("board", "show", "--store", store), regrade("report", store)]
    outputs += [regrade("report", store, "--markdown"), regrade("board", "page", "--store", store)]
    for output in outputs:
        assert not CONTROLS.search((output.stdout + output.stderr).replace("\n", ""))
        assert all(line.startswith("regrade: ") for line in output.stderr.splitlines())
    rankings = json.loads(regrade("board", "show", "--store", store, "--json").stdout, parse_constant=pytest.fail)
    [ranking] = [ranking for ranking in rankings if ranking["task"] == "paper"]
    entries = {entry["entry"]: entry for entry in ranking["entries"]}
    return {name: {number: entries[name][number] for number in NUMBERS} for name in GOOD}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, paper_tasks: None) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("good")
    good_board(folder)
    return shown(folder)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(changes(), min_size=1, max_size=12))
def test_anything_in_a_row_leaves_the_other_entries_as_they_are(wanted, changed: list[tuple[str, int, dict[str, Any]]]):
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        good_board(store)
        for number, (table, index, what) in enumerate(changed):
            row, measured = entry_rows("bad", 0.85, 0.5, 0.93, seed=number)
            measured.append(matching_row(row["trial"], 0.5))
            measured = [with_samples(one) for one in measured]
            rows = {"trials": [row], "measurements": measured, "items": item_rows(measured)}
            rows[table][index % len(rows[table])] |= what
            for name, content in rows.items():
                put(store, name, content, f"zz{number}")
        assert shown(store) == wanted
