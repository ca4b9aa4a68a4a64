"""The log of an unlearning run's steps, against the same steps taken by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from leaderboard.board.schema import STEPS
from suite.oracle.base import Part
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training import step_log
from suite.training.step_log import StepLog
from suite.trials.run import run_trial
from tests.support.runs import Trained, batch, made
from tests.support.small import SMALL


def logged(run: Trained, steps: int) -> list[dict[str, Any]]:
    """The rows of a run, each with what was measured beside it: the change of the weights, losses before the step."""
    log, rows = StepLog(run.oracle, run.optimizer, run.metered.queries), []
    for number in range(steps):
        run.oracle.batch = batch(number)
        losses = [float(run.oracle.values(part, [None])) for part in (Part.FORGET, Part.RETAIN)]
        before = [p.detach().clone() for p in run.oracle.parameters]
        run.oracle.seen.take()
        log.before()
        run.optimizer.step(run.metered)
        run.metered.stepped()
        log.after(number + 1, 0.0)
        moved = math.sqrt(
            sum(
                float((p.detach() - b).double().square().sum())
                for p, b in zip(run.oracle.parameters, before, strict=True)
            )
        )
        rows.append({"moved": moved, "losses": losses})
    return [dict(zip(step_log.COLUMNS, row, strict=True)) | by for row, by in zip(log.rows(), rows, strict=True)]


def test_a_first_order_step_is_logged_as_it_was():
    for row in logged(made("npo", "none", "adam", "full"), 3):
        assert row["update_norm"] == pytest.approx(row["moved"], rel=1e-5)
        assert [row["forget_loss"], row["retain_loss"]] == pytest.approx(row["losses"], rel=1e-5)
        assert row["gradient_norm"] > 0 and row["value_queries"] == 0 and row["gradient_queries"] == row["step"]


def test_a_zeroth_order_step_has_the_norm_of_its_estimate():
    """With one direction on the sphere it is exact: ZO-SGD moves by the step size times it."""
    run = made("npo", "none", "zo_sgd", "full")
    for row in logged(run, 3):
        assert row["update_norm"] == pytest.approx(row["moved"], rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(row["moved"] / row["lr"], rel=1e-3)
        assert row["forget_loss"] == pytest.approx(row["losses"][0], rel=0.2), "around the weights, not at them"
        assert row["value_queries"] == 2 * row["step"]


def test_of_many_weights_some_tell_the_change(monkeypatch):
    monkeypatch.setattr(step_log, "WATCHED", 400)
    for row in logged(made("npo", "none", "adam", "full"), 3):
        assert row["update_norm"] != row["moved"]
        assert row["update_norm"] == pytest.approx(row["moved"], rel=0.3)


def test_a_hybrid_logs_the_step_size_of_the_part_that_moved(tmp_path):
    optimizer = {"name": "hybrid", "lr": 1e-2, "zo_lr": 1e-3, "block": 4, "zo": {"radius": 1e-2}}
    spec = trial(merged(SMALL, {"optimizer": optimizer, "steps": 8}))
    store = Store(tmp_path)
    run_trial(spec, store, measure=MeasureSpec(attacks=(), match=None, limit=1, splits=("dev",)))
    (row,) = store.board.read("steps").to_pylist()
    assert row["trial"] == spec.id and row["request"] == "all"
    assert row["lr"] == [1e-2, 1e-2, 1e-3, 1e-3] * 2
    assert row["gradient_queries"] == [1, 2, 2, 2, 3, 4, 4, 4]
    assert row["value_queries"] == [0, 0, 2, 4, 4, 4, 6, 8]
    (file,) = Path(tmp_path).glob(f"stages/unlearn/*/{step_log.FILE}")
    names = [field.name for field in STEPS if field.name not in ("trial", "request")]
    assert pq.read_table(file).column_names == names == list(step_log.COLUMNS)


def test_a_diverged_run_is_logged_up_to_where_it_began(tmp_path):
    spec = trial(merged(SMALL, {"optimizer": {"name": "sgd", "lr": 30}, "objective": "gradient_ascent", "steps": 60}))
    store = Store(tmp_path)
    outcome = run_trial(spec, store, measure=MeasureSpec(attacks=(), match=None, limit=1, splits=("dev",)))
    assert outcome.row["status"] == "diverged"
    (row,) = store.board.read("steps").to_pylist()
    assert row["step"] == list(range(1, outcome.row["steps_done"] + 2))
    assert row["update_norm"][-1] == 0, "a step that fails moves nothing"
    assert max(row["gradient_norm"][:-1]) > 100 * row["gradient_norm"][0]
    assert not any(isinstance(value, float) and math.isnan(value) for value in row["forget_loss"])
    began, what = step_log.onset(row)
    assert f"; it began at step {began}, where {what} left its range" in outcome.row["reason"]
    assert 1 < began <= outcome.row["steps_done"]


def log_of(**columns: list[float | None]) -> dict[str, list[float | None]]:
    """A log in which what is not given stays at 1."""
    length = len(next(iter(columns.values())))
    return {name: columns.get(name, [1.0] * length) for name in step_log.COLUMNS} | {"step": list(range(1, length + 1))}


def test_a_divergence_began_where_the_first_number_left_its_range_for_good():
    assert step_log.onset(log_of(retain_loss=[1, 2, 1, 2, 50, 300, None])) == (5, "the retain loss")
    spike = log_of(retain_loss=[1, 2, 50, 2, 1, 2, 300], gradient_norm=[1, 1, 1, 1, 1, 99, 1e9])
    assert step_log.onset(spike) == (6, "the norm of the gradient")
    assert step_log.onset(log_of(update_norm=[1, 1, 30, 40, 0.0])) == (3, "the norm of the step"), "a failed step is 0"
    assert step_log.onset(log_of(forget_loss=[-1, -2, -40])) == (3, "the forget loss")
    assert step_log.onset(log_of(forget_loss=[1, 2, 3, None])) is None
    assert step_log.onset(log_of(forget_loss=[])) is None
    assert step_log.onset(log_of(gradient_norm=[None, None, 3.0])) is None


def test_two_requests_have_a_row_each(tmp_path):
    spec = trial(merged(SMALL, {"forget": ["people", "minerals", "passages"], "steps": 2}))
    store = Store(tmp_path)
    run_trial(spec, store, measure=MeasureSpec(attacks=(), match=None, limit=1, splits=("dev",)))
    rows = store.board.read("steps").to_pylist()
    assert sorted(row["request"] for row in rows) == ["minerals", "passages", "people"]
    assert all(row["step"] == [1, 2] for row in rows)


def test_noting_costs_no_query_and_keeps_no_graph():
    run = made("npo", "none", "adam", "full")
    run.steps(range(2))
    forget, retain, norm = run.oracle.seen.take()
    assert not any(value.requires_grad for value in (forget, retain, norm))
    assert run.oracle.seen.take() == (None, None, None)
    assert isinstance(norm, torch.Tensor) and run.oracle.queries.gradient == 2
