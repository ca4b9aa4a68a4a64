"""The row of a trial in the board's `trials` table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from leaderboard.board.packages import as_column
from leaderboard.board.schema import RANDOM_CHANGE, Status
from suite.optimizers import OPTIMIZERS
from suite.oracle.base import Grade
from suite.spec.packages import packages_of
from suite.spec.random_change import AnyTrial, RandomChange
from suite.spec.trial import TrialSpec
from suite.storage.environment import Numeric
from suite.storage.provenance import observed, suite_version
from suite.storage.stages import Artifact
from suite.training import step_log
from suite.training.anchors import Anchors
from suite.training.unlearning import requests
from suite.training.weight_change import Change
from tasks import TASKS
from tasks.task import Task

Row = dict[str, Any]

LONGEST_REASON = 2000
"""Characters of an error message that a row keeps."""


def trial_row(spec: AnyTrial, task: Task, anchors: Anchors, stages: Sequence[Artifact], numeric: Numeric) -> Row:
    """The row of a completed trial, from its unlearning stages, or of a null trial from its only one."""
    metas = [stage.meta for stage in stages]
    decisive = next((m for m in metas if m["status"] != "ok"), metas[-1])
    weights = metas[-1]["weights"]
    status, reason = decisive["status"], decisive["reason"]
    if status != Status.DIVERGED and weights == anchors.target.weights:
        status, reason = str(Status.UNCHANGED), "every weight is still the target's: nothing was unlearned"
    scale_id, scale_weights = anchors.scale
    cost = {key: sum(m["cost"][key] for m in metas) for key in metas[0]["cost"]}
    return {
        **_identity(spec),
        "template": anchors.base.encoder.template_id,
        "template_args": _template_args(anchors),
        "status": status,
        "reason": reason,
        "task_version": task.version,
        "data": task.data,
        "source": task.source or None,
        "steps_done": sum(m["steps_done"] for m in metas),
        "anchors": scale_id,
        "anchor_ids": scale_weights,
        "weights": weights,
        "value_calls": cost["value"],
        "gradient_calls": cost["gradient"],
        "directional_calls": cost["directional"],
        "curvature_calls": cost["curvature"],
        "tokens": cost["tokens"],
        **{column.name: metas[-1][column.name] for column in fields(Change)},
        "drowned": None if any(m["drowned"] is None for m in metas) else sum(m["drowned"] for m in metas),
        "device": numeric.device,
        "torch": numeric.torch,
        "threads": numeric.threads,
        "plugins": as_column(packages_of(spec) | {"task": TASKS.package(spec.task)}),
        "unlearn_seconds": sum(m["observed"]["seconds"] for m in metas),
        "peak_bytes": max(m["observed"]["peak_bytes"] for m in metas),
    }


def step_rows(spec: TrialSpec, task: Task, stages: Sequence[Artifact]) -> list[Row]:
    """The step logs of a trial's runs, one row per forget request. Stages of earlier versions have none."""
    return [
        {"trial": spec.id, "request": request.name, **step_log.read(stage.file(step_log.FILE))}
        for request, stage in zip(requests(spec, task), stages, strict=True)
        if stage.file(step_log.FILE).exists()
    ]


def _template_args(anchors: Anchors) -> str | None:
    args = anchors.base.encoder.args
    return json.dumps(dict(args), sort_keys=True, ensure_ascii=False) if args else None


def failed_row(spec: AnyTrial, error: BaseException) -> Row:
    """The row of a trial that ended in an error."""
    # A lone surrogate, as in a file name that is no UTF-8, cannot be stored.
    reason = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
    return {**_identity(spec), "status": str(Status.FAILED), "reason": reason[:LONGEST_REASON]}


def _identity(spec: AnyTrial) -> Row:
    return {
        "trial": spec.id,
        "entry": spec.entry,
        "task": spec.task,
        "model": spec.model.name,
        **_method(spec),
        "seed": spec.seed,
        "spec": json.dumps(spec.canonical, sort_keys=True),
        "dtype": spec.model.dtype,
        "suite_version": suite_version(),
        "pid": os.getpid(),
        **observed(),
    }


def _method(spec: AnyTrial) -> Row:
    if isinstance(spec, RandomChange):
        return {"optimizer": RANDOM_CHANGE, "steps": 0}
    optimizer = spec.optimizer
    zo = getattr(optimizer, "zo", None)
    grade = OPTIMIZERS[optimizer.name].grade
    ratio = {Grade.ZEROTH: 1.0, Grade.HYBRID: getattr(optimizer, "share", None)}.get(grade, 0.0)
    return {
        "objective": spec.objective.name,
        "smoothing": spec.smoothing.name,
        "optimizer": optimizer.name,
        "adapter": spec.adapter.name,
        "grade": str(grade),
        "zo_samples": zo.samples if zo else None,
        "zo_ratio": ratio,
        "steps": spec.steps,
    }
