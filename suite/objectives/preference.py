"""Preference optimization: answers are made less likely than before, or than a refusal.

NPO and its reference-free form are gradient ascent that fades out once an answer is forgotten; DPO prefers a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from suite.models.likelihood import LanguageModel, sequence_logprobs
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.base import Part
from suite.oracle.batch import Batch


def npo(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-(2 / beta) mean log sigmoid(-beta (log p - log p_ref)), over sequences.

    The log-ratio is that of complete answers: sums of log-probabilities, in nats, shape (sequences,). For beta -> 0 its
    gradient is that of gradient ascent on the summed loss (NPO, arXiv 2404.05868, Eq. 3 and Prop. 1).
    """
    return -(2 / beta) * logsigmoid(-beta * (logprobs - reference)).mean()


def simnpo(logprobs: Tensor, lengths: Tensor, beta: float, margin: float) -> Tensor:
    """-(2 / beta) mean log sigmoid(-beta (log p / |y|) - beta margin) (SimNPO, arXiv 2410.07163, Eq. 4).

    Args:
        logprobs, lengths: (sequences,) log-probability of each answer in nats, and its number of tokens.
        margin: in nats per token; the paper's gamma is beta * margin.
    """
    return -(2 / beta) * logsigmoid(-beta * (logprobs / lengths + margin)).mean()


def dpo(winner: Tensor, loser: Tensor, beta: float) -> Tensor:
    """-(2 / beta) mean log sigmoid(beta (winner - loser)), over sequences (DPO, arXiv 2305.18290, Eq. 7; 2 as in NPO).

    Args:
        winner, loser: (sequences,) log p - log p_ref of the preferred and of the other answer, in nats, summed over
            their tokens.
    """
    return -(2 / beta) * logsigmoid(beta * (winner - loser)).mean()


class NPO(Objective["NPO.Settings"]):
    """Negative preference optimization against the model before unlearning (Zhang et al. 2024, arXiv 2404.05868)."""

    uses_forget_reference = True

    class Settings(ObjectiveSettings):
        """beta: inverse temperature, per nat of a complete answer's log-ratio."""

        name: Literal["npo"] = "npo"
        beta: float = Field(0.1, gt=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        assert batch.forget_reference is not None
        return npo(sequence_logprobs(model, batch.forget), batch.forget_reference, self.settings.beta)


class SimNPO(Objective["SimNPO.Settings"]):
    """NPO with the answer's length in place of a reference model (Fan et al. 2024, arXiv 2410.07163)."""

    example: ClassVar[Mapping[str, Any]] = {"beta": 0.5}

    class Settings(ObjectiveSettings):
        """beta: inverse temperature, per nat and token. margin: nats per token."""

        name: Literal["simnpo"] = "simnpo"
        beta: float = Field(4.5, gt=0)
        margin: float = Field(0.0, ge=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        lengths = batch.forget.answer.sum(-1)
        return simnpo(sequence_logprobs(model, batch.forget), lengths, self.settings.beta, self.settings.margin)


class DPO(Objective["DPO.Settings"]):
    """Direct preference optimization of a refusal over the answer, IdkDPO (Rafailov et al. 2023, arXiv 2305.18290)."""

    uses_forget_reference = True
    uses_forget_refusals = True

    class Settings(ObjectiveSettings):
        """beta: inverse temperature, per nat of a complete answer's log-ratio."""

        name: Literal["dpo"] = "dpo"
        beta: float = Field(0.1, gt=0)

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        assert batch.forget_reference is not None and batch.forget_refusals is not None
        assert batch.forget_refusals_reference is not None
        winner = sequence_logprobs(model, batch.forget_refusals) - batch.forget_refusals_reference
        loser = sequence_logprobs(model, batch.forget) - batch.forget_reference
        return dpo(winner, loser, self.settings.beta)

    def tokens(self, part: Part, batch: Batch) -> int:
        refusals = batch.forget_refusals if part is Part.FORGET else None
        return super().tokens(part, batch) + (refusals.size if refusals else 0)
