"""The early-stopping criterion of a trial with `until`: a checkpoint's remaining knowledge on dev."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from suite.engines import Engine
from suite.evaluation.evaluator import estimates
from suite.models.checkpoints import Checkpoint
from suite.models.outline import outline_of
from suite.training.anchors import Anchors
from tasks.scoring import Estimate
from tasks.scoring.headline import knowledge, largest
from tasks.task import Headline, Split, Task


class KnowledgeOnDev:
    """A checkpoint's knowledge, from the task's knowledge headlines alone. The anchors are measured on first use."""

    def __init__(self, task: Task, anchors: Anchors, engine: Engine) -> None:
        self._task, self._anchors, self._engine = task, anchors, engine

    @property
    def identity(self) -> dict[str, Any]:
        """What the criterion depends on besides the task and the anchors, for stage keys."""
        architecture = self._anchors.target.checkpoint.architecture
        return {"engine": self._engine.identity() | outline_of(architecture).generation}

    def __call__(self, checkpoint: Checkpoint) -> float | None:
        """Knowledge, 1 at the target and 0 at the retrained model; None where it cannot be computed."""
        current, target, zero = self._estimates(checkpoint), self._target, self._zero
        return largest(knowledge(current[h], target[h], zero[h]) for h in self._task.knowledge).value

    def _estimates(self, checkpoint: Checkpoint) -> dict[Headline, Estimate]:
        return estimates(checkpoint, self._task.knowledge, self._task, Split.DEV, self._engine)

    @cached_property
    def _target(self) -> dict[Headline, Estimate]:
        return self._estimates(self._anchors.target.checkpoint)

    @cached_property
    def _zero(self) -> dict[Headline, Estimate]:
        """Estimates of the retrained model, or chance where there is none."""
        if self._anchors.retrained:
            return self._estimates(self._anchors.retrained.checkpoint)
        return {h: Estimate(h.chance, 0.0, self._target[h].n) for h in self._task.knowledge}
