"""The base class of objectives: a forget loss, a retain loss, and a reference model if they need one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from suite.config import settings
from suite.models.encoding import Tokens
from suite.models.likelihood import LanguageModel, answer_labels, answer_logits, answer_mean, mean_nll, token_logprobs
from suite.objectives.reference import Reference
from suite.oracle.base import Part
from suite.oracle.batch import Batch
from suite.oracle.state import Stateful


class ObjectiveSettings(settings.Settings):
    """Settings that every objective has.

    Attributes:
        forget_weight, retain_weight: factors of the two losses. With a retain weight of 0, retain texts are never read.
        retain: `nll`, cross-entropy on the retain answers; `kl`, KL(reference || model) over their tokens.
        name: of the objective, a literal in the settings of each one that is registered.
    """

    forget_weight: float = Field(1.0, gt=0)
    retain: Literal["nll", "kl"] = "nll"
    retain_weight: float = Field(1.0, ge=0)
    name: str = ""


S = TypeVar("S", bound=ObjectiveSettings)


class Objective(Stateful, Generic[S]):
    """A forget loss and a retain loss on a batch; the total is their weighted sum.

    Objectives receive the model, not its logits: some read hidden states. Losses are 0-dimensional float64 tensors.

    Args:
        reference: the model before unlearning; required if `needs_reference`.
    """

    Settings: type[S]
    uses_forget_reference: ClassVar[bool] = False
    """Whether `Batch.forget_reference` is required, and `forget_refusals_reference` if there are refusals."""
    uses_forget_refusals: ClassVar[bool] = False
    """Whether `Batch.forget_refusals` is required."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings with which it does all that it does within six steps on a small model. Tests make it with them."""

    def __init__(self, settings: S, reference: Reference | None = None) -> None:
        if self.needs_reference(settings) and reference is None:
            raise ValueError(f"{settings.name} with these settings compares with a reference model")
        self.settings = settings
        self.reference = reference
        self.parts: tuple[Part, ...] = (Part.FORGET, Part.RETAIN) if settings.retain_weight else (Part.FORGET,)

    @classmethod
    def needs_reference(cls, settings: S) -> bool:
        """Whether the reference model runs in every step, and so has to stay in memory."""
        return settings.retain == "kl" and settings.retain_weight > 0

    @classmethod
    def needs_retain_refusals(cls, settings: S) -> bool:
        """Whether `Batch.retain_refusals` is required."""
        return False

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The forget loss, which unlearning minimizes, without its weight.

        Gradients and differences of values must agree, because a zeroth-order optimizer uses values alone.
        """
        raise NotImplementedError

    def retain_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The retain loss, without its weight: the setting `retain` selects it."""
        if self.settings.retain == "nll":
            return mean_nll(model, batch.retain)
        assert self.reference is not None
        return token_kl(self.reference.logits(batch.retain), answer_logits(model, batch.retain), batch.retain)

    def tokens(self, part: Part, batch: Batch) -> int:
        """Number of token positions that one evaluation of the forget or retain loss passes through the model."""
        return batch.tokens(part)

    def relearn(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The loss that relearning minimizes: the cross-entropy of the forget answers."""
        return mean_nll(model, batch.forget)

    def stepped(self, model: LanguageModel, batch: Batch) -> int:
        """Called after the optimizer has moved the weights. Returns the tokens that this passed through the model."""
        return 0

    def edited(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights to export, by name, from those before and after the steps. Most objectives export the latter."""
        return after

    def forget(self, model: LanguageModel, batch: Batch) -> Tensor:
        return self.settings.forget_weight * self.forget_loss(model, batch)

    def retain(self, model: LanguageModel, batch: Batch) -> Tensor:
        return self.settings.retain_weight * self.retain_loss(model, batch)

    def resampled(self, model: LanguageModel, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        """Mean cross-entropy of labels drawn from the model at the answers' positions, and the number of labels.

        Its gradient g gives the Gauss-Newton-Bartlett estimate count * g^2 of the curvature of the model's own loss
        (Sophia, arXiv 2305.14342, Alg. 2), the same for every objective.
        """
        total = torch.zeros((), dtype=torch.float64, device=batch.forget.ids.device)
        count = 0
        for tokens in [batch.forget, batch.retain][: len(self.parts)]:
            logits = answer_logits(model, tokens)
            _, mask = answer_labels(tokens)
            labels = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1, generator=generator)
            total = total - token_logprobs(logits, labels.view(mask.shape), mask).sum()
            count += int(mask.sum())
        return total / count, count


def token_kl(reference: Tensor, logits: Tensor, tokens: Tokens) -> Tensor:
    """KL(reference || model) in nats, averaged over the answers' tokens alone, without padding and prompts."""
    _, mask = answer_labels(tokens)
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    return answer_mean((p.exp() * (p - q)).sum(-1), mask)
