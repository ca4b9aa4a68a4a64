"""A task's data as a trial asks for it."""

from __future__ import annotations

from dataclasses import replace

from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec
from tasks import EXTRAS, TASKS
from tasks.task import Task, limited


def load_task(spec: TrialSpec, measure: MeasureSpec) -> Task:
    """The trial's task with what is measured besides, and as much retain text as it asks for.

    Raises:
        TaskError: the task's data is missing or malformed.
    """
    task = with_extras(spec.task, measure)
    retain = task.retain[: spec.anchors.retain_limit] if spec.anchors.retain_limit else task.retain
    return replace(task, retain=retain)


def with_extras(name: str, measure: MeasureSpec) -> Task:
    """A task with what is measured besides.

    Raises:
        TaskError: the task's data is missing or malformed.
    """
    task = TASKS[name].build()
    for extra in measure.also:
        task = EXTRAS[extra](task)
    return task


def as_asked(task: Task, measure: MeasureSpec) -> Task:
    """The task with as many items per probe as are asked. What an attacker may hold is the whole of it."""
    return replace(task, probes=limited(task.probes, measure.limit)) if measure.limit else task
