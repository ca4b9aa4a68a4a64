"""Primal-dual unlearning: minimize the forget loss under a bound on the retain loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Whole
from suite.models.likelihood import LanguageModel, answer_labels, answer_logits, answer_mean
from suite.objectives.base import Objective, ObjectiveSettings
from suite.objectives.reference import Reference
from suite.oracle.batch import Batch


def logit_margin(logits: Tensor, mask: Tensor) -> Tensor:
    """mean (max z - mean z)^2 over the answers' tokens: 0 where all tokens are equally likely.

    Args:
        logits, mask: (sequences, positions, vocabulary), and (sequences, positions) true where an answer's token is
            predicted.
    """
    return answer_mean((logits.amax(-1) - logits.mean(-1)).square(), mask)


class PDU(Objective["PDU.Settings"]):
    """Primal-dual unlearning: flat forget logits under a bound on the retain loss (PDU, arXiv 2506.05314).

    The Lagrangian is forget_weight * forget + dual * (L_r - retain_bound). Within a step the dual variable is a
    constant. After each step dual_step * (L_r - retain_bound) is added, at the new weights on the step's batch, and the
    sum is clamped at 0. So -dual * retain_bound has no gradient, and a loose bound can drive the retain loss's weight
    to 0.
    """

    state = (*Objective.state, "dual", "steps_done")
    example: ClassVar[Mapping[str, Any]] = {"retain_weight": 1.0}

    class Settings(ObjectiveSettings):
        """retain_weight: initial dual variable. retain_bound: bound on the retain loss, in nats per token.

        dual_step: step size of the dual variable. dual_warmup: steps before its first update (published: half the run).
        """

        name: Literal["pdu"] = "pdu"
        retain_weight: float = Field(100.0, gt=0)
        retain_bound: float = Field(0.3, ge=0)
        dual_step: float = Field(5.0, ge=0)
        dual_warmup: Whole = 0

    def __init__(self, settings: Settings, reference: Reference | None = None) -> None:
        super().__init__(settings, reference)
        self.dual = settings.retain_weight
        self.steps_done = 0

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        _, mask = answer_labels(batch.forget)
        return logit_margin(answer_logits(model, batch.forget), mask)

    def retain(self, model: LanguageModel, batch: Batch) -> Tensor:
        return self.dual * (self.retain_loss(model, batch) - self.settings.retain_bound)

    @torch.no_grad()
    def stepped(self, model: LanguageModel, batch: Batch) -> int:
        self.steps_done += 1
        if self.steps_done <= self.settings.dual_warmup:
            return 0
        excess = float(self.retain_loss(model, batch)) - self.settings.retain_bound
        self.dual = max(0.0, self.dual + self.settings.dual_step * excess)
        return batch.retain.size
