"""Pruning: the least important weights become zero, which removes what unlearning wrote into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.attacks.base import AttackContext, Subject
from suite.attacks.weights.calibrated_edit import CalibratedEdit, CalibratedSettings
from suite.attacks.weights.layer_inputs import Inputs
from suite.models.checkpoints import State
from suite.models.outline import Outline
from tasks.task import Probe, Split, Task


def least(scores: Tensor, share: float) -> Tensor:
    """A mask of the round(share * n) smallest of each row's n scores, among equal ones the first: (rows, n).

    Args:
        scores: (rows, n), without NaN.
    """
    count = round(share * scores.shape[1])
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count, 1, keepdim=True).values
    below, at = scores < limit, scores == limit
    return below | (at & (at.cumsum(1) <= count - below.sum(1, keepdim=True)))


def smallest_zeroed(weight: Tensor, sparsity: float) -> Tensor:
    """A layer's weight, (outputs, inputs), with the smallest magnitudes in the layer set to zero."""
    pruned = least(weight.abs().reshape(1, -1), sparsity).view_as(weight)
    return weight.masked_fill(pruned, 0)


def wanda(weight: Tensor, norms: Tensor, sparsity: float) -> Tensor:
    """A layer's weight with the smallest |W_ij| ||x_j|| of each output set to zero (Eq. 1 of arXiv 2306.11695).

    Args:
        weight: (outputs, inputs).
        norms: L2 norm of each input over the calibration texts, (inputs,).
    """
    return weight.masked_fill(least(weight.abs() * norms, sparsity), 0)


class Pruning(CalibratedEdit["Pruning.Settings"]):
    """A share of each linear layer's weights set to zero: the smallest, or those that matter least to its output."""

    source = "Sun et al. 2024, arXiv 2306.11695"
    gram = False
    example: ClassVar[Mapping[str, Any]] = {"by": "wanda", "sparsity": 0.5, "samples": 4}

    class Settings(CalibratedSettings):
        """by: `magnitude` compares the weights of a layer and needs no texts; `wanda` compares the weights of an
        output, by magnitude times norm of the input.

        sparsity: share of the weights that become zero, rounded to a whole number of weights.
        """

        name: Literal["prune"] = "prune"
        by: Literal["magnitude", "wanda"]
        sparsity: float = Field(ge=0, le=1)

        @model_validator(mode="after")
        def _read(self) -> Self:
            unread = {"texts", "samples", "seed"} & self.changed().keys()
            if self.by == "magnitude" and unread:
                raise ValueError(f"{min(unread)}: by=magnitude reads no texts. Leave it out, or use by=wanda")
            return self

    @property
    def changes_nothing(self) -> bool:
        return self.settings.sparsity == 0

    @property
    def random(self) -> bool:
        return self.settings.by == "wanda" and super().random

    def check(self, task: Task, split: Split) -> None:
        if self.settings.by == "wanda":
            super().check(task, split)

    def reached(self, outline: Outline) -> float:
        return super().reached(outline) if self.settings.by == "wanda" else outline.share

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        return super().reads(probes, context) if self.settings.by == "wanda" else {}

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        if self.settings.by == "wanda":
            return super().edited(state, subject, context)
        return self.each(state, subject, context, lambda weight, _: smallest_zeroed(weight, self.settings.sparsity))

    def edit(self, weight: Tensor, inputs: Inputs) -> Tensor:
        return wanda(weight, inputs.norms, self.settings.sparsity)
