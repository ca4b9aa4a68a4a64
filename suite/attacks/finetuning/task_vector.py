"""Task arithmetic against unlearning: forget even more, then move the weights the opposite way.

The change of the weights by gradient ascent on forget texts is a direction of forgetting, and finding it does not take
the model before unlearning. Subtracting the change negates the forgetting, as subtracting a fine-tuning's change
negates a task (Ilharco et al. 2023, arXiv 2212.04089).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from suite.attacks.base import AttackContext
from suite.attacks.finetuning.base import FineTuning, FineTuningSettings
from suite.models.checkpoints import Checkpoint, TensorCheckpoint
from suite.objectives.task_vector import negated
from tasks.task import Split


class NegatedForgetting(FineTuning["NegatedForgetting.Settings"]):
    """Gradient ascent on n forget texts, then `scale` times the change subtracted: w - scale (w after ascent - w)."""

    source = "Ilharco et al. 2023, arXiv 2212.04089"
    ascend = True
    example: ClassVar[Mapping[str, Any]] = {"samples": 2, "steps": 2, "lr": 1e-3, "points": 2, "scale": 1.0}

    class Settings(FineTuningSettings):
        """scale: how much of the change is subtracted."""

        name: Literal["task_vector"] = "task_vector"
        scale: float = Field(ge=0)

    @property
    def changes_nothing(self) -> bool:
        return not self.settings.scale or super().changes_nothing

    def train(
        self, checkpoint: Checkpoint, split: Split, context: AttackContext
    ) -> Iterator[tuple[int, TensorCheckpoint]]:
        before = checkpoint.state()
        # Trained in fp32: bf16 weights would round small steps away, and the difference is all that matters here.
        exact = {name: weight.float() if weight.is_floating_point() else weight for name, weight in before.items()}
        start = TensorCheckpoint(exact, checkpoint.architecture)
        for point, ascended in super().train(start, split, context):
            after = ascended.tensors
            negation = {name: negated(weight, after[name], self.settings.scale) for name, weight in before.items()}
            yield point, replace(ascended, tensors=negation)
