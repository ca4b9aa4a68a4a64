"""What would run, what it would cost, and everything that can be known to be wrong before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suite.attacks.relearning import Relearning
from suite.environment import choose_device
from suite.optimizers.hybrid import Hybrid, layout
from suite.optimizers.second_order import Sophia
from suite.settings import SpecError
from suite.spec import MeasureSpec, RuntimeSpec, TrialSpec
from suite.unlearning import requests
from tasks import TASKS
from tasks.task import Task


@dataclass(frozen=True, slots=True)
class Cost:
    """What a trial asks for, by count.

    Attributes:
        evaluations: times that a checkpoint is asked all probes of a split, the anchors' (shared by trials) included.
    """

    steps: int
    value_calls: int
    gradient_calls: int
    curvature_calls: int
    evaluations: int

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def preflight(
    trials: Sequence[TrialSpec], measure: MeasureSpec, runtime: RuntimeSpec, *, here: bool = True
) -> list[tuple[TrialSpec, Cost]]:
    """Check every trial against its task, data and machine, and say what it costs.

    Args:
        here: whether the trials run on this machine; the head of a cluster may have no GPU while its workers have.

    Raises:
        SpecError: what cannot work, and what to change.
    """
    if here:
        choose_device(runtime)
    tasks: dict[str, Task] = {}
    costs = []
    for spec in trials:
        task = tasks.get(spec.task) or tasks.setdefault(spec.task, TASKS[spec.task].build())
        _fits(spec, task, measure)
        costs.append((spec, cost(spec, task, measure)))
    return costs


def _fits(spec: TrialSpec, task: Task, measure: MeasureSpec) -> None:
    for request in requests(spec, task):
        if spec.batch_size > len(request.texts):
            raise SpecError(f"batch_size: {spec.batch_size}, but {request.name} has only {len(request.texts)} texts")
    texts = len(task.forget_examples())
    for split in measure.splits:
        for attack in measure.attacks_for(spec.task, split):
            if isinstance(attack, Relearning) and attack.settings.samples > texts:
                raise SpecError(f"measure.attacks: {attack.name}: {spec.task} has only {texts} forget texts")


def cost(spec: TrialSpec, task: Task, measure: MeasureSpec) -> Cost:
    steps = spec.steps * len(requests(spec, task))
    optimizer: Any = spec.optimizer
    zeroth = 0
    if isinstance(optimizer, Hybrid.Settings):
        zeroth = sum(layout(spec.steps, optimizer.zo_ratio, optimizer.block)) * steps // spec.steps
    elif hasattr(optimizer, "zo"):
        zeroth = steps
    values = 2 * optimizer.zo.samples * zeroth if zeroth else 0
    curvature = -(-steps // optimizer.every) if isinstance(optimizer, Sophia.Settings) else 0
    smoothing = 3 if spec.smoothing.name == "sam" else 1
    points = sum(len(a.points) for split in measure.splits for a in measure.attacks_for(spec.task, split))
    kept = (spec.steps - 1) // spec.checkpoints.every if spec.checkpoints.every else 0
    return Cost(steps, values, smoothing * (steps - zeroth), curvature, 3 * points + kept * len(measure.splits))
