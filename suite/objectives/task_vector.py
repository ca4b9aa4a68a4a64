"""Task arithmetic: train on the forget set, then subtract the change (Ilharco et al. 2023, arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from suite.models.likelihood import LanguageModel, mean_nll
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.batch import Batch


def negated(before: Tensor, after: Tensor, scale: float) -> Tensor:
    """before - scale (after - before), in fp32, rounded once to the weights' dtype."""
    return (before.float() - scale * (after.float() - before.float())).to(before.dtype)


class TaskVector(Objective["TaskVector.Settings"]):
    """Task vector: minimize cross-entropy on the forget answers, then subtract the change (arXiv 2212.04089)."""

    class Settings(ObjectiveSettings):
        """scale: factor of the change that is subtracted from the initial weights."""

        name: Literal["task_vector"] = "task_vector"
        scale: float = Field(1.0, gt=0)
        retain_weight: float = Field(0.0, ge=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return mean_nll(model, batch.forget)

    def edited(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The initial weights minus `scale` times their change; tensors without an initial value stay as they are."""
        return {
            name: negated(before[name].to(tensor.device), tensor, self.settings.scale) if name in before else tensor
            for name, tensor in after.items()
        }
