"""A run tells who watches it where it is, at each intermediate checkpoint, and can be stopped there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leaderboard.board.schema import UNLEARNED
from leaderboard.ranking.headlines import Headlines
from suite.config.runtime import RuntimeSpec
from suite.runners.base import Outcome, TrialJob, run_one
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec, trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training.unlearning import StoppedByScheduler
from suite.trials.harness import headlines_of
from suite.trials.on_dev import Progress
from suite.trials.run import run_trial
from tasks.task import Split
from tests.support.small import SMALL

ONLY = MeasureSpec(attacks=(), match=None, splits=("dev",))
LEARNED = {
    "model": {"tiny": {"hidden": 64, "layers": 2, "heads": 4, "vocabulary": 1024}},
    "anchors": {"epochs": 16, "lr": 6e-3},
}
"""So that the anchors are far enough apart."""


def of(**settings: Any) -> TrialSpec:
    return trial(merged(SMALL, LEARNED | {"steps": 9, "checkpoints": {"every": 3}} | settings))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("watched"))


def on_board(store: Store, spec: TrialSpec, step: int) -> Headlines:
    """F and U on dev of an intermediate checkpoint, from its rows and the anchors'."""
    (row,) = (r for r in store.board.read("trials").to_pylist() if r["trial"] == spec.id)
    rows = store.board.read("measurements").to_pylist()
    subject = f"unlearned@{step}"
    mine = [r | {"subject": UNLEARNED} for r in rows if r["trial"] == spec.id and r["subject"] == subject]
    anchors = [r for r in rows if r["subject"] in ("target", "retrained")]
    assert mine and anchors
    return headlines_of([*mine, *anchors], Split.DEV, ("none",), row["anchor_ids"])


@pytest.mark.parametrize("settings", [{}, {"forget": ["people", "minerals", "passages"]}], ids=["one", "three"])
def test_what_is_told_is_what_the_rows_say(settings, store):
    spec, told = of(**settings), list[Progress]()
    run_trial(spec, store, measure=ONLY, report=told.append)
    assert [progress.step for progress in told] == [3 + 9 * i + 3 * j for i in range(len(spec.forget)) for j in (0, 1)]
    for progress in told:
        expected = on_board(store, spec, progress.step)
        assert expected.forgetting.known and expected.utility.known
        assert progress.forgetting == pytest.approx(expected.forgetting.value, abs=1e-6)
        assert progress.utility == pytest.approx(expected.utility.value, abs=1e-6)
    again = list[Progress]()
    run_trial(spec, store, measure=ONLY, report=again.append)
    assert again == told, "a run that was made before is told of in the same way"


def test_a_run_that_is_stopped_is_on_no_board_and_goes_on_to_the_same_bits(store, tmp_path, monkeypatch):
    spec = of(seed=7)
    expected = run_trial(spec, store, measure=ONLY).row["weights"]
    other, told = Store(tmp_path), list[int]()

    def stop_at(last: int) -> Outcome:
        def report(progress: Progress) -> bool:
            told.append(progress.step)
            return progress.step == last

        return run_one(TrialJob(spec, ONLY, RuntimeSpec(), Path(tmp_path)), report=report)

    outcome = stop_at(3)
    assert (outcome.status, outcome.reason) == ("pruned", "stopped by the scheduler at step 3")
    assert other.board.read("trials").num_rows == 0 and other.board.read("steps").num_rows == 0
    with pytest.raises(StoppedByScheduler):
        run_trial(spec, other, measure=ONLY, report=lambda progress: progress.step == 6)
    outcome = stop_at(0)
    assert outcome.status == "ok"
    assert told == [3, 3, 6], "who comes later is told of what was before"
    (row,) = other.board.read("trials").to_pylist()
    assert row["weights"] == expected and row["gradient_calls"] == 9, "no step was made twice"


@pytest.mark.ray
def test_a_scheduler_of_tunes_stops_a_trial(tmp_path):
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    from suite.runners.ray_tune import run_on_ray

    class StopsOneSeed(FIFOScheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            assert "outcome" in result or {"step", "forgetting", "utility"} <= result.keys()
            bad = '"seed": 1' in trial.config["spec"] and result.get("step") == 6
            return TrialScheduler.STOP if bad else TrialScheduler.CONTINUE

    jobs = [TrialJob(of(seed=seed), ONLY, RuntimeSpec(), Path(tmp_path)) for seed in (0, 1, 2)]
    outcomes: list[Outcome] = []
    run_on_ray(jobs, outcomes.append, address=None, concurrency=1, scheduler=StopsOneSeed())
    by_trial = {outcome.trial: outcome for outcome in outcomes}
    assert len(outcomes) == 3, "each trial has one outcome"
    assert [by_trial[job.spec.id].status for job in jobs] == ["ok", "pruned", "ok"]
    assert by_trial[jobs[1].spec.id].reason == "stopped by the scheduler at step 6"
    assert {row["trial"] for row in Store(tmp_path).board.read("trials").to_pylist()} == {
        jobs[0].spec.id,
        jobs[2].spec.id,
    }
