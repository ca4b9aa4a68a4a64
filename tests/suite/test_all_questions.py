"""`measure.splits=[all]`: the questions of both splits together, as published statistics take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.trials.run import run_trial
from tasks import Split
from tests.support.small import SMALL


def test_all_questions_are_asked_without_an_attack(tmp_path: Path):
    store = Store(tmp_path)
    measure = MeasureSpec(splits=("all",), limit=4, match=None)
    result = run_trial(trial(SMALL), store, measure=measure)
    rows = store.board.read("measurements").to_pylist()
    assert {row["attack"] for row in rows} == {"none"}
    by_split: dict[str, dict[tuple, dict]] = {"dev": {}, "test": {}, "all": {}}
    for row in rows:
        by_split[row["split"]][row["subject"], row["probe"], row["metric"]] = row
    assert by_split["dev"].keys() == by_split["test"].keys() == by_split["all"].keys()
    compared = 0
    for key, whole in by_split["all"].items():
        parts = [by_split[split][key] for split in ("dev", "test")]
        if all(row["value"] is not None and row["headline"] for row in (whole, *parts)):
            compared += 1
            n = sum(part["n"] for part in parts)
            assert whole["n"] == n
            assert whole["value"] == pytest.approx(sum(part["value"] * part["n"] for part in parts) / n)
    assert compared > 5
    # The attacks come later, and the questions are not asked again.
    later = Store(tmp_path)
    run_trial(trial(SMALL), later, measure=MeasureSpec(splits=("all", "test"), attacks=(), limit=4, match=None))
    assert later.stages.computed == {} and result.row["status"] == "ok"


def test_which_splits_are_attacked():
    both = MeasureSpec(splits=("test", "all"))
    assert (both.attacked, both.asked) == ((Split.TEST,), (Split.TEST, Split.DEV))
    assert [attack.name for attack in both.attacks_for("pocket", Split.DEV)] == ["none"]
    assert len(both.attacks_for("pocket", Split.TEST)) == 5
    assert MeasureSpec().asked == MeasureSpec().attacked == (Split.TEST,)
