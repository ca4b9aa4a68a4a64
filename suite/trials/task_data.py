"""A task as one measurement sees it: its data, as much of it as is asked, and the attacks on each split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from suite.attacks import Attack
from suite.spec.measure import MeasureSpec
from tasks import EXTRAS, TASKS
from tasks.task import Split, Task, limited


@dataclass(frozen=True)
class TaskData:
    """A task's data under the settings of a measurement.

    Attributes:
        whole: all of the task's questions, and the extras': what an attacker may hold.
        task: the same with as many questions per probe as are asked.
        attacks: by split, in order; the attack that does nothing is the first.
    """

    whole: Task
    task: Task
    attacks: Mapping[Split, tuple[Attack, ...]]

    @classmethod
    def load(cls, name: str, measure: MeasureSpec, retain_limit: int | None = None) -> Self:
        """Read a task.

        Args:
            retain_limit: how many of the retain texts there are to be, the first ones; None for all.

        Raises:
            TaskError: the task's data is missing or malformed.
            SpecError: no such attack, or no such set of attacks.
        """
        whole = with_extras(name, measure)
        if retain_limit:
            whole = replace(whole, retain=whole.retain[:retain_limit])
        attacks = {split: measure.attacks_for(name, split) for split in measure.splits}
        return cls(whole, within_limit(whole, measure), attacks)

    @property
    def attack_names(self) -> dict[Split, list[str]]:
        """The attacks by their names in rows."""
        return {split: [attack.name for attack in attacks] for split, attacks in self.attacks.items()}


def with_extras(name: str, measure: MeasureSpec) -> Task:
    """A task with what is measured besides.

    Raises:
        TaskError: the task's data is missing or malformed.
    """
    task = TASKS[name].build()
    for extra in measure.also:
        task = EXTRAS[extra](task)
    return task


def within_limit(task: Task, measure: MeasureSpec) -> Task:
    """The task with as many questions per probe as the measurement asks."""
    return replace(task, probes=limited(task.probes, measure.limit)) if measure.limit else task
