"""A store that an earlier version made, kept: it is read, its stages are reused, its board is shown as it was.

`stores/before-the-rooms.tar.xz` was written at version 0.1.0, commit f17015d, before modules moved into rooms. It holds
`store`, two trials of `spec.yaml` in `store` on a model too small to know anything; `quickstart`, the trials and
measurements of the quickstart's board; and the rankings of both as that version computed them. Both are of version 1
of `pocket`, which is beside them as a module.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from leaderboard.board.schema import TABLES, Role, columns
from leaderboard.board.store import Board
from leaderboard.ranking.rank import rank
from suite.engines import TransformersEngine
from suite.spec.search_space import plan
from suite.spec.trial import trial
from suite.spec.yaml_file import load_file
from suite.storage.environment import Numeric
from suite.storage.store import Store
from suite.trials.run import run_trial
from tasks import TASKS

KEPT = Path(__file__).parent / "stores" / "before-the-rooms.tar.xz"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    with tarfile.open(KEPT) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def its_machine(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numeric environment that the store was made in, whatever this one is: nothing is computed."""
    manifests = [json.loads(path.read_text()) for path in (before / "store" / "stages" / "samples").glob("*.json")]
    (numeric,) = {json.dumps(manifest["inputs"]["numeric"]) for manifest in manifests}
    (version,) = {manifest["inputs"]["engine"]["version"] for manifest in manifests}
    monkeypatch.setattr(Numeric, "of", lambda runtime: Numeric(**json.loads(numeric)))
    made = TransformersEngine.__init__

    def of_its_version(self: TransformersEngine, *args, **kwargs) -> None:
        made(self, *args, **kwargs)
        self.version = version

    monkeypatch.setattr(TransformersEngine, "__init__", of_its_version)


@pytest.fixture
def its_task(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pocket` as it was then: another version of a task has other texts, and so other stages."""
    module = importlib.util.spec_from_file_location("pocket_1", before / "pocket_1.py")
    made = importlib.util.module_from_spec(module)
    monkeypatch.setitem(sys.modules, "pocket_1", made)  # its dataclasses look for it there
    module.loader.exec_module(made)
    monkeypatch.setitem(TASKS.own, "pocket", made.ENTRY)


@pytest.mark.parametrize("name", ["store", "quickstart"])
def test_its_trials_have_the_ids_that_they_had(before, name):
    rows = Board(before / name / "board").read("trials").to_pylist()
    assert rows
    for row in rows:
        spec = trial(json.loads(row["spec"]))
        assert (spec.id, spec.entry) == (row["trial"], row["entry"])


def test_its_stages_are_reused_and_its_rows_are_the_same(before, its_machine, its_task):
    here = plan(load_file(before / "spec.yaml", ()))
    board = Store(before / "store").board
    rows = {table: board.result_rows(table) for table in TABLES}
    for spec in here.trials():
        store = Store(before / "store")
        run_trial(spec, store, measure=here.measure, runtime=here.runtime)
        assert store.stages.computed == {}
        assert {kind: len(keys) for kind, keys in store.stages.reused.items()} == {
            **dict.fromkeys(("base", "target", "retrained", "unlearn", "landscape"), 1),
            "samples": 2 * (3 * (1 + 1 + 2) + 1),  # splits; models, plain and under two attacks; one kept checkpoint
        }
    assert not rows.pop("items").num_rows and board.result_rows("items").num_rows  # a table of today
    assert not rows.pop("steps").num_rows and not board.result_rows("steps").num_rows  # these stages have no log
    for table, old in rows.items():
        now = board.result_rows(table)
        if table == "measurements":  # today utility is matched on each split, and here neither is known
            curves = pc.equal(now["matching"], "curve[floor=0.9]")
            assert all(now.filter(curves)["reason"].to_pylist())
            assert pc.sum(curves).as_py() == 2 * len(here.trials())
            now = now.filter(pc.invert(curves))
        assert now.equals(old), table
        assert old.num_rows
        assert old.column_names == columns(table, Role.KEY, Role.RESULT)


@pytest.mark.parametrize(("name", "split", "floor"), [("store", "dev", 0.9), ("quickstart", "test", 0.8)])
def test_its_board_is_shown_as_it_was(before, its_task, name, split, floor):
    shown = rank(Board(before / name / "board"), "pocket", split, floor=floor).as_json()
    old = json.loads((before / f"{name}-ranking.json").read_text())
    assert shown["group"].pop("template") == "bare"  # a column of today, read off the spec
    new_entries, old_entries = ({entry["entry"]: entry for entry in found.pop("entries")} for found in (shown, old))
    assert {key: shown[key] for key in old} == old
    assert new_entries.keys() == old_entries.keys()
    for entry, was in old_entries.items():
        # Ranks follow from differences today, and with two runs there are none; every number is as it was.
        assert new_entries[entry]["rank"] is None and was.pop("rank") in (None, 1, 5)
        assert set(was.pop("notes")) <= set(new_entries[entry].pop("notes"))
        assert _same(new_entries[entry], was)


def _same(new: Any, old: Any) -> bool:
    """Whether all that a ranking of before says is said today; of numbers, their plain values."""
    if isinstance(old, dict) and "over_examples" in old:
        return new["plain"] == old["value"] and list(new["seed_values"]) == old["seed_values"]
    if isinstance(old, dict):
        return all(name in new and _same(new[name], value) for name, value in old.items())
    return new == old
