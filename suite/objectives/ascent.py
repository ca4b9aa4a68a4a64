"""Gradient ascent and gradient difference: make the forget answers unlikely, without or with a retain loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from suite.models.likelihood import LanguageModel, mean_nll
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.batch import Batch


class GradientAscent(Objective[ObjectiveSettings]):
    """Gradient ascent: -L_f (Thudi et al. 2022; Jang et al. 2023). Unbounded; no retain loss by default."""

    class Settings(ObjectiveSettings):
        name: Literal["gradient_ascent"] = "gradient_ascent"
        retain_weight: float = Field(0.0, ge=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return -mean_nll(model, batch.forget)


class GradientDifference(GradientAscent):
    """Gradient difference, GradDiff: -L_f + L_r (Liu et al. 2022, arXiv 2203.12817)."""

    class Settings(ObjectiveSettings):
        name: Literal["graddiff"] = "graddiff"
