"""A task as one measurement uses it: its data, the probes within the limit, and the attacks on each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from suite.attacks import Attack
from suite.spec.measure import MeasureSpec
from tasks import EXTRAS, TASKS
from tasks.errors import RegradeError
from tasks.scoring import METRICS
from tasks.task import Split, Task, TaskError, limited


@dataclass(frozen=True)
class TaskData:
    """A task's data under the settings of a measurement.

    Attributes:
        full_task: the task and the extras with all their questions, which an attacker may have.
        task: the same with at most `measure.limit` questions per probe: the ones that are evaluated.
        attacks: by split, in order, each with every seed that it is carried out with; the attack that does nothing is
            the first.
        covered: by split the attacks that robustness covers, by their names with their own seeds.
    """

    full_task: Task
    task: Task
    attacks: Mapping[Split, tuple[Attack, ...]]
    covered: Mapping[Split, Sequence[str]]

    @classmethod
    def load(cls, name: str, measure: MeasureSpec, retain_limit: int | None = None) -> Self:
        """Read a task.

        Args:
            retain_limit: use only the first so many retain texts; None for all.

        Raises:
            TaskError: the task's data is missing or malformed.
            SpecError: no such attack, or no such set of attacks.
        """
        full_task = with_extras(name, measure)
        if retain_limit:
            full_task = replace(full_task, retain=full_task.retain[:retain_limit])
        attacks = {split: measure.attacks_for(name, split) for split in measure.asked}
        covered = {split: [attack.name for attack in measure.covered(name, split)] for split in measure.asked}
        return cls(full_task, within_limit(full_task, measure), attacks, covered)


def with_extras(name: str, measure: MeasureSpec) -> Task:
    """A task with the probes of the extras that `measure.also` names.

    Raises:
        TaskError: the task's data is missing or malformed.
    """
    task = _built(name)
    for extra in measure.also:
        task = EXTRAS[extra](task)
    return task


def _built(name: str) -> Task:
    """The task, whose metrics are there."""
    package = TASKS.package(name)
    try:
        task = TASKS[name].build()
    except Exception as error:
        if package is None or isinstance(error, RegradeError):
            raise
        raise TaskError(f"task {name} of {package} cannot be built, {type(error).__name__}: {error}") from error
    for probe in task.probes:
        if missing := [metric for metric in probe.metrics if metric not in METRICS]:
            raise TaskError(f"task {name}: its probe {probe.name} names the metric {missing[0]}, and there is none")
    return task


def within_limit(task: Task, measure: MeasureSpec) -> Task:
    """The task with at most `measure.limit` questions per probe."""
    return replace(task, probes=limited(task.probes, measure.limit)) if measure.limit else task
