"""From what was computed to rows of the board."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from leaderboard.headlines import Answers
from leaderboard.schema import Status
from suite.anchors import Anchors
from suite.engines import Engine
from suite.environment import Numeric, observed, suite_version
from suite.evaluation import Evaluated
from suite.optimizers import OPTIMIZERS
from suite.oracle import Grade
from suite.spec import TrialSpec
from suite.stages import Artifact
from tasks.scoring import METRICS, score
from tasks.task import Headline, Task

Row = dict[str, Any]


def measurement_rows(evaluated: Evaluated, trial: str, task: Task, anchors: Anchors, engine: Engine) -> list[Row]:
    """One row per probe and metric of an evaluation.

    Args:
        trial: id that the rows stand under: the trial's, or the anchors'.
    """
    e = evaluated.evaluation
    roles = {**_roles("knowledge", task.knowledge), **_roles("utility", task.utility)}
    rows: list[Row] = []
    for probe in e.probes:
        for metric in probe.metrics:
            estimate = score(metric, evaluated.samples[probe.name])
            headline, chance = roles.get((probe.name, metric), (None, None))
            rows.append(
                {
                    "trial": trial,
                    "subject": e.subject,
                    "attack": e.attack.name,
                    "point": e.point,
                    "probe": probe.name,
                    "subset": str(probe.subset),
                    "split": str(probe.split),
                    "matching": "raw",
                    "engine": engine.name,
                    "metric": metric,
                    "value": estimate.value,
                    "stderr": estimate.stderr,
                    "n": estimate.n,
                    "direction": "up" if METRICS[metric].up else "down",
                    "headline": headline,
                    "chance": chance,
                    "status": str(Status.OK if estimate.known else Status.NULL),
                    "reason": estimate.reason,
                    "task": task.name,
                    "task_version": task.version,
                    "data": task.data,
                    "anchors": anchors.id,
                    "anchor_ids": anchors.weights,
                    "samples": evaluated.artifact.key,
                    "engine_version": engine.version,
                    "dtype": engine.dtype,
                    **observed(),
                }
            )
    return rows


def answers(model: str, rows: Iterable[Row]) -> Answers:
    """The headline answers among measurement rows."""
    return Answers.of(model, [row for row in rows if row["headline"]])


def trial_row(spec: TrialSpec, task: Task, anchors: Anchors, stages: Sequence[Artifact], numeric: Numeric) -> Row:
    """A trial that was carried out, from its unlearning stages."""
    metas = [stage.meta for stage in stages]
    unlucky = next((m for m in metas if m["status"] != "ok"), metas[-1])
    cost = {key: sum(m["cost"][key] for m in metas) for key in metas[0]["cost"]}
    return {
        **_identity(spec),
        "status": unlucky["status"],
        "reason": unlucky["reason"],
        "task_version": task.version,
        "data": task.data,
        "steps_done": sum(m["steps_done"] for m in metas),
        "anchors": anchors.id,
        "anchor_ids": anchors.weights,
        "weights": metas[-1]["weights"],
        "value_calls": cost["value"],
        "gradient_calls": cost["gradient"],
        "directional_calls": cost["directional"],
        "curvature_calls": cost["curvature"],
        "tokens": cost["tokens"],
        "change_norm": metas[-1]["change_norm"],
        "changed_share": metas[-1]["changed_share"],
        "changed_share_bf16": metas[-1]["changed_share_bf16"],
        "flipped_share_4bit": metas[-1]["flipped_share_4bit"],
        "flipped_share_8bit": metas[-1]["flipped_share_8bit"],
        "drift": None if any(m["drift"] is None for m in metas) else max(m["drift"] for m in metas),
        "drowned": None if any(m["drowned"] is None for m in metas) else sum(m["drowned"] for m in metas),
        "device": numeric.device,
        "torch": numeric.torch,
        "threads": numeric.threads,
        "unlearn_seconds": sum(m["observed"]["seconds"] for m in metas),
        "peak_bytes": max(m["observed"]["peak_bytes"] for m in metas),
    }


def failed_row(spec: TrialSpec, error: BaseException) -> Row:
    """A trial that ended in an error."""
    return {**_identity(spec), "status": str(Status.FAILED), "reason": f"{type(error).__name__}: {error}"[:2000]}


def _identity(spec: TrialSpec) -> Row:
    optimizer = spec.optimizer
    zo = getattr(optimizer, "zo", None)
    grade = OPTIMIZERS[optimizer.name].grade
    ratio = {Grade.ZEROTH: 1.0, Grade.HYBRID: getattr(optimizer, "share", None)}.get(grade, 0.0)
    return {
        "trial": spec.id,
        "entry": spec.entry,
        "task": spec.task,
        "model": spec.model.name,
        "objective": spec.objective.name,
        "smoothing": spec.smoothing.name,
        "optimizer": optimizer.name,
        "adapter": spec.adapter.name,
        "grade": str(grade),
        "zo_samples": zo.samples if zo else None,
        "zo_ratio": ratio,
        "steps": spec.steps,
        "seed": spec.seed,
        "spec": json.dumps(spec.canonical, sort_keys=True),
        "dtype": spec.model.dtype,
        "suite_version": suite_version(),
        "pid": os.getpid(),
        **observed(),
    }


def _roles(role: str, headlines: Sequence[Headline]) -> dict[tuple[str, str], tuple[str, float]]:
    return {(h.probe, h.metric): (role, h.chance) for h in headlines}
