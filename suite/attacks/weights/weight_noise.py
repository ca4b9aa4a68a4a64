"""Noise on the weights: how much the forgetting depends on the exact values of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject
from suite.attacks.weights.matrix_edit import MatrixEdit
from suite.config.numbers import Seed
from suite.models.checkpoints import State
from suite.oracle import noise

_KIND = 0x2015E
"""Key that separates this noise from everything else drawn from the same seed."""


def noised(weight: Tensor, sigma: float, key: noise.Key) -> Tensor:
    """w + sigma rms(w) z with z standard normal, computed in fp32, in the weight's dtype."""
    wide = weight.float()
    (z,) = noise.gaussian([wide], key)
    return z.mul_(wide.square().mean().sqrt() * sigma).add_(wide).to(weight.dtype)


class WeightNoise(MatrixEdit["WeightNoise.Settings"]):
    """Gaussian noise of sigma times each matrix's root-mean-square. Linear layers only: no embeddings, norms or biases.

    A control: it does not depend on what was forgotten, so what it brings back was suppressed rather than removed.
    """

    source = "relative Gaussian weight noise, a control"
    example: ClassVar[Mapping[str, Any]] = {"sigma": 0.1}

    class Settings(AttackSettings):
        """sigma: standard deviation, in units of a matrix's root-mean-square. seed: of the noise."""

        name: Literal["noise"] = "noise"
        sigma: float = Field(ge=0)
        seed: Seed = 0

    @property
    def changes_nothing(self) -> bool:
        return self.settings.sigma == 0

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        s = self.settings
        key = context.seed, _KIND, s.seed
        return self.each(state, subject, context, lambda weight, place: noised(weight, s.sigma, (*key, *place)))
