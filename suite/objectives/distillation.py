"""Distillation towards a distribution in which the true token is suppressed: UNDIAL and CE-U."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Whole
from suite.models.likelihood import LanguageModel, answer_labels, answer_logits, answer_mean
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.batch import Batch


def undial(reference: Tensor, logits: Tensor, labels: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Cross-entropy to softmax(z_ref - strength onehot(y)) in nats, averaged over the answers' tokens alone.

    UNDIAL, Dong et al. 2025, arXiv 2402.10052. Prompts and padding do not contribute.

    Args:
        reference, logits: (sequences, positions, vocabulary) z_ref before unlearning and z now.
        labels, mask: (sequences, positions) true token y, and whether it is an answer's.
    """
    target = reference.scatter_add(-1, labels.unsqueeze(-1), torch.full_like(reference[..., :1], -strength))
    return answer_mean(-(target.softmax(-1) * logits.log_softmax(-1)).sum(-1), mask)


def ce_u(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """mean -log(1 - p_y), whose gradient is that of the published cross-entropy to a detached target.

    CE-U (Yang 2025, arXiv 2503.01224) is cross-entropy to the model's own distribution q without the true token,
    q = softmax(z with z_y = -inf), held constant. Its gradient p - q is exactly that of unlikelihood, -log(1 - p_y).
    With unlikelihood as the loss, differences of values agree with the gradient; with cross-entropy to a moving q they
    do not.

    Args:
        logits, labels, mask: as `undial`.
    """
    z = logits.double()  # for a memorized token 1 - p is a difference of nearly equal numbers
    others = z.scatter(-1, labels.unsqueeze(-1), -torch.inf)
    return answer_mean(z.logsumexp(-1) - others.logsumexp(-1), mask)


def without_first(mask: Tensor, skip: int) -> Tensor:
    """The mask without the first `skip` true positions of each row; an answer that would be empty keeps its last."""
    order = mask.cumsum(-1)
    return mask & (order > order[:, -1:].sub(1).clamp(max=skip))


class Undial(Objective["Undial.Settings"]):
    """Self-distillation from the old model with the true token's logit lowered (Dong et al., arXiv 2402.10052)."""

    class Settings(ObjectiveSettings):
        """strength: by how much the true token's logit is lowered, in logits."""

        name: Literal["undial"] = "undial"
        strength: float = Field(10.0, gt=0)
        retain_weight: float = Field(0.0, ge=0)

    @classmethod
    def needs_reference(cls, settings: Settings) -> bool:
        return True

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        assert self.reference is not None
        logits = answer_logits(model, batch.forget)
        return undial(self.reference.logits(batch.forget), logits, *answer_labels(batch.forget), self.settings.strength)


class CEU(Objective["CEU.Settings"]):
    """Cross-entropy to the model's own distribution without the true token (Yang 2025, arXiv 2503.01224)."""

    class Settings(ObjectiveSettings):
        """skip: number of first tokens of each answer that are left out; at least one token always remains."""

        name: Literal["ce_u"] = "ce_u"
        skip: Whole = 1
        retain_weight: float = Field(0.0, ge=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        labels, mask = answer_labels(batch.forget)
        return ce_u(answer_logits(model, batch.forget), labels, without_first(mask, self.settings.skip))
