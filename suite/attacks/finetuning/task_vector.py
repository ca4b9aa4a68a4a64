"""Task arithmetic against unlearning: forget further still, then go the other way.

What gradient ascent on forget texts does to the weights is a direction of forgetting, even where the model before
unlearning is not to be had. Subtracting it negates the forgetting, as subtracting what fine-tuning did negates a task
(Ilharco et al. 2023, arXiv 2212.04089).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from pydantic import Field

from suite.attacks.base import AttackContext
from suite.attacks.finetuning.base import FineTuning, FineTuningSettings
from suite.models.checkpoints import Checkpoint, TensorCheckpoint
from suite.objectives.task_vector import negated
from tasks.task import Split


class NegatedForgetting(FineTuning):
    """Gradient ascent on n forget texts, and `scale` times the change subtracted: w - scale (w after ascent - w)."""

    source = "Ilharco et al. 2023, arXiv 2212.04089"
    ascend = True

    class Settings(FineTuningSettings):
        """scale: how much of the change is subtracted."""

        name: Literal["task_vector"] = "task_vector"
        scale: float = Field(ge=0)

    @property
    def idle(self) -> bool:
        return not self.settings.scale or super().idle

    def trained(
        self, checkpoint: Checkpoint, split: Split, context: AttackContext
    ) -> Iterator[tuple[int, TensorCheckpoint]]:
        before = checkpoint.state()
        # Of small steps bf16 weights would keep little, and their difference is all that matters here.
        exact = {name: weight.float() if weight.is_floating_point() else weight for name, weight in before.items()}
        start = TensorCheckpoint(exact, checkpoint.architecture)
        for point, ascended in super().trained(start, split, context):
            after = ascended.tensors
            negation = {name: negated(weight, after[name], self.settings.scale) for name, weight in before.items()}
            yield point, replace(ascended, tensors=negation)
