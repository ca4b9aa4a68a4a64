"""The loss f of answers as a function of the weights, which barriers and sharpness are measured on.

f is the loss per token of each answer, averaged over the texts, so that every text counts the same and the spread
over texts gives a standard error. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suite.engines.scores import batches
from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import LanguageModel, sequence_logprobs
from suite.objectives import Objective
from suite.objectives.base import ObjectiveSettings
from suite.oracle.base import Displacement, Diverged, Part, Tensors
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

BATCH_TOKENS = 2048
"""Positions of a batch: the graph of a second derivative takes about ten times the memory of a forward pass."""


def text_losses(model: LanguageModel, tokens: Tokens) -> Tensor:
    """-log p per token of each answer, in nats: float64, (sequences,)."""
    return -sequence_logprobs(model, tokens) / tokens.answer.sum(-1)


class Texts:
    """Texts in batches.

    Args:
        encoded: the texts; each has an answer.
    """

    def __init__(self, encoded: Sequence[Encoded], device: torch.device) -> None:
        self.count = len(encoded)
        self.batches = [
            Tokens.collate([encoded[i] for i in rows], device, rows)
            for rows in batches([len(text.ids) for text in encoded], BATCH_TOKENS)
        ]

    @torch.no_grad()
    def losses(self, model: LanguageModel) -> Tensor:
        """Loss of each text, in the order of the constructor's argument: float64, (texts,), on the CPU."""
        losses = torch.empty(self.count, dtype=torch.float64)
        for tokens in self.batches:
            losses[list(tokens.rows)] = text_losses(model, tokens).cpu()
        return losses


class Surface:
    """f around a model's weights.

    Args:
        model: in fp32, for differences that bf16 weights would round away. It is not changed.

    Raises:
        Diverged: there are no texts, so there is no loss.
    """

    def __init__(self, model: CausalLM, texts: Texts) -> None:
        if not texts.count:
            raise Diverged("there are no texts")
        self.texts = texts
        self._oracle = LossOracle(model, _Answers(ObjectiveSettings(retain_weight=0.0)))
        self.parameters: Tensors = self._oracle.parameters

    def values(self, displacements: Sequence[Displacement | None]) -> Tensor:
        """f at each displacement from the weights: float64, shape (len(displacements),).

        Raises:
            Diverged: f is not finite.
        """
        total = torch.zeros(len(displacements), dtype=torch.float64)
        for share in self._shares():
            total += share * self._oracle.values(Part.FORGET, displacements)
        return total

    def curvature(self, direction: Tensors) -> float:
        """v'Hv for the Hessian H of f, by a Hessian-vector product.

        Raises:
            Diverged: f or the product is not finite.
        """
        total = 0.0
        for share in self._shares():
            product = self._oracle.hvp(Part.FORGET, direction)
            total += share * sum(float((p.double() * v).sum()) for p, v in zip(product, direction, strict=True))
        return total

    def _shares(self) -> Iterator[float]:
        """Set each batch in turn on the oracle, and yield its share of the texts."""
        for tokens in self.texts.batches:
            self._oracle.batch = Batch(tokens, tokens)
            yield len(tokens) / self.texts.count


class _Answers(Objective):
    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        return text_losses(model, batch.forget).mean()
