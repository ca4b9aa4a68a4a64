"""Representation misdirection: the hidden states of forget texts are steered to one random vector."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Seed, Whole
from suite.models.encoding import Tokens
from suite.models.likelihood import LanguageModel, answer_mean, hidden_states
from suite.objectives.base import Objective, ObjectiveSettings
from suite.oracle.batch import Batch


def activation_distance(states: Tensor, target: Tensor, tokens: Tokens) -> Tensor:
    """Mean squared distance over hidden units and all tokens, with prompts but without padding.

    Args:
        states: (sequences, length, hidden units). target: of the same shape, or (hidden units,).
    """
    return answer_mean((states - target).square().mean(-1), tokens.text)


@cache
def control_vector(size: int, seed: int) -> Tensor:
    """Random unit vector of the positive orthant, uniform numbers of [0, 1) normalised, as published: (size,), fp32."""
    vector = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


class RMU(Objective["RMU.Settings"]):
    """Representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218, Eq. 1 and 2).

    ||h_f - steering u||^2 + retain_weight ||h_r - h_r before unlearning||^2 after one block, per token and hidden unit.
    Published runs train only the second MLP layer of this block and of the two below it (see `trainable`).
    """

    example: ClassVar[Mapping[str, Any]] = {"layer": 0}

    class Settings(ObjectiveSettings):
        """layer: the block after which states are read, from 0. steering: norm of the target vector.

        seed: seed of the target's direction u. retain: the states by default, or `nll` or `kl`. For zephyr-7b the paper
        uses layer 7, steering 6.5 and retain_weight 1200; the last two depend on the scale of the model's states.
        """

        name: Literal["rmu"] = "rmu"
        layer: Whole = 7
        steering: float = Field(2.0, gt=0)
        seed: Seed = 0
        retain: Literal["nll", "kl", "states"] = "states"  # type: ignore[assignment]  # one way more than others have

    @classmethod
    def needs_reference(cls, settings: Settings) -> bool:
        return settings.retain != "nll" and settings.retain_weight > 0

    def forget_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        states = hidden_states(model, batch.forget, self.settings.layer)
        target = self.settings.steering * control_vector(states.shape[-1], self.settings.seed).to(states.device)
        return activation_distance(states, target, batch.forget)

    def retain_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        if self.settings.retain != "states":
            return super().retain_loss(model, batch)
        assert self.reference is not None
        states = hidden_states(model, batch.retain, self.settings.layer)
        return activation_distance(
            states, self.reference.hidden_states(batch.retain, self.settings.layer), batch.retain
        )
