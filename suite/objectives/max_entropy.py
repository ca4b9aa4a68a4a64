"""Maximum entropy on the forget answers, answer preservation on the retain answers."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from suite.models.likelihood import LanguageModel, answer_labels, answer_logits, answer_mean, sequence_logprobs
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.base import Part
from suite.oracle.batch import Batch


def uniform_kl(logits: Tensor, mask: Tensor) -> Tensor:
    """KL(uniform || p) in nats, averaged over the answers' tokens: log-sum-exp(z) - mean(z) - log(vocabulary)."""
    return answer_mean(logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1]), mask)


def answer_preservation(answers: Tensor, refusals: Tensor, beta: float) -> Tensor:
    """-(1 / beta) mean log sigmoid(beta (log p(answer) - log p(refusal))), over sequences.

    Args:
        answers, refusals: (sequences,) log-probabilities in nats, summed over tokens and not divided by their number,
            as in the published code.
    """
    return -logsigmoid(beta * (answers - refusals)).mean() / beta


class MaximumEntropy(Objective["MaximumEntropy.Settings"]):
    """ME+AP: uniform predictions on forget answers, no refusals on the rest (Yuan et al. 2024, arXiv 2410.08109)."""

    class Settings(ObjectiveSettings):
        """retain: answer preservation by default, or `nll` or `kl`.

        beta: inverse temperature of answer preservation, per nat of whole answers.
        """

        name: Literal["me_ap"] = "me_ap"
        retain: Literal["nll", "kl", "preservation"] = "preservation"  # type: ignore[assignment]  # one way more than others have
        beta: float = Field(0.1, gt=0)

    @classmethod
    def needs_retain_refusals(cls, settings: Settings) -> bool:
        return settings.retain == "preservation" and settings.retain_weight > 0

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        _, mask = answer_labels(batch.forget)
        return uniform_kl(answer_logits(model, batch.forget), mask)

    def retain_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        if self.settings.retain != "preservation":
            return super().retain_loss(model, batch)
        assert batch.retain_refusals is not None
        answers, refusals = (sequence_logprobs(model, texts) for texts in (batch.retain, batch.retain_refusals))
        return answer_preservation(answers, refusals, self.settings.beta)

    def tokens(self, part: Part, batch: Batch) -> int:
        refusals = batch.retain_refusals if part is Part.RETAIN else None
        return super().tokens(part, batch) + (refusals.size if refusals else 0)
