"""Headlines on dev of a checkpoint in the middle of a run: for early stopping (`until`), and for whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from suite.engines import Engine
from suite.evaluation.evaluator import estimates
from suite.models.checkpoints import Checkpoint
from suite.models.outline import outline_of
from suite.training.anchors import Anchors
from tasks.scoring import Estimate
from tasks.scoring.headline import knowledge, largest, share_kept, share_lost, smallest
from tasks.task import Headline, Split, Task


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a trial is: F and U on dev of the weights at an intermediate checkpoint, without an attack.

    Attributes:
        step: steps made, over all forget requests.
        forgetting, utility: None where they cannot be computed.
    """

    step: int
    forgetting: float | None
    utility: float | None


Report = Callable[[Progress], bool | None]
"""Called at each intermediate checkpoint. A true answer stops the trial, which can go on later."""


class OnDev:
    """Headlines of checkpoints on dev, from the task's headlines alone. The anchors are measured on first use."""

    def __init__(self, task: Task, anchors: Anchors, engine: Engine) -> None:
        self._task, self._anchors, self._engine = task, anchors, engine

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on besides the task and the anchors, for stage keys."""
        architecture = self._anchors.target.checkpoint.architecture
        return {"engine": self._engine.identity() | outline_of(architecture).generation}

    def knowledge(self, checkpoint: Checkpoint) -> float | None:
        """Knowledge, 1 at the target and 0 at the retrained model; None where it cannot be computed."""
        return self._knowledge(self._estimates(checkpoint, self._task.knowledge)).value

    def progress(self, step: int, checkpoint: Checkpoint) -> Progress:
        found = self._estimates(checkpoint, (*self._task.knowledge, *self._task.utility))
        kept = [share_kept(found[h], self._utility_of_target[h], h.chance) for h in self._task.utility]
        return Progress(step, share_lost(self._knowledge(found)).value, smallest(kept).value)

    def _knowledge(self, found: dict[Headline, Estimate]) -> Estimate:
        return largest(knowledge(found[h], self._target[h], self._zero[h]) for h in self._task.knowledge)

    def _estimates(self, checkpoint: Checkpoint, headlines: Sequence[Headline]) -> dict[Headline, Estimate]:
        return estimates(checkpoint, headlines, self._task, Split.DEV, self._engine)

    @cached_property
    def _target(self) -> dict[Headline, Estimate]:
        return self._estimates(self._anchors.target.checkpoint, self._task.knowledge)

    @cached_property
    def _utility_of_target(self) -> dict[Headline, Estimate]:
        return self._estimates(self._anchors.target.checkpoint, self._task.utility)

    @cached_property
    def _zero(self) -> dict[Headline, Estimate]:
        """Estimates of the retrained model, or chance where there is none."""
        if self._anchors.retrained:
            return self._estimates(self._anchors.retrained.checkpoint, self._task.knowledge)
        return {h: Estimate(h.chance, 0.0, self._target[h].n) for h in self._task.knowledge}
