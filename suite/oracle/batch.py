"""The batch of one unlearning step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from suite.models.encoding import Tokens
from suite.oracle.base import Part


@dataclass(frozen=True)
class Batch:
    """The texts of one unlearning step. A field is None where the objective does not use it.

    Attributes:
        forget_reference: (sequences,) log-probability of each forget answer under the model before unlearning, in
            nats, summed over its tokens.
        forget_refusals: the forget prompts, each with a refusal as its answer.
        forget_refusals_reference: (sequences,) the refusals' log-probabilities, as `forget_reference`.
        retain_refusals: the retain prompts, each with a refusal as its answer.
    """

    forget: Tokens
    retain: Tokens
    forget_reference: Tensor | None = None
    forget_refusals: Tokens | None = None
    forget_refusals_reference: Tensor | None = None
    retain_refusals: Tokens | None = None

    def tokens(self, part: Part) -> int:
        """Positions of the forget or of the retain texts, padding included."""
        return (self.forget if part is Part.FORGET else self.retain).size
