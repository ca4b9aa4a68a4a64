"""Randomized smoothing: the forget loss averaged over Gaussian noise on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Few
from suite.optimizers.base import Run
from suite.oracle.base import Displacement, Oracle, Part, Tensors
from suite.smoothing.arithmetic import combined
from suite.smoothing.base import ForgetSmoothing, SmoothingSettings
from suite.smoothing.neighbourhood import Neighbourhood


class RandomizedSmoothing(ForgetSmoothing["RandomizedSmoothing.Settings"]):
    """The mean of L_f(theta + sigma xi_i) over n draws of xi ~ N(0, I) (RS in arXiv 2502.05374).

    Values, gradients, derivatives along a direction and Hessian products are all those of this one function, whose
    draws change from step to step. Curvature samples are not smoothed: their labels come from the model.
    """

    source = "arXiv 2502.05374"

    class Settings(SmoothingSettings):
        """
        Attributes:
            sigma: standard deviation of the noise on each weight.
            samples: draws per step, n; each costs one query of the same kind.
        """

        name: Literal["rs"] = "rs"
        sigma: float = Field(1e-4, gt=0)
        samples: Few = 3

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        super().__init__(oracle, settings, run)
        self._noise = Neighbourhood(oracle.parameters, run.seed, settings.name)

    def forget_values(self, displacements: Sequence[Displacement | None]) -> Tensor:
        values = [
            self.oracle.values(Part.FORGET, [draw + displacement for displacement in displacements])
            for draw in self._draws()
        ]
        return torch.stack(values).mean(0)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        share = 1 / self.settings.samples
        terms = ((share, self.oracle.gradient(Part.FORGET, draw + at)) for draw in self._draws())
        return combined(terms, like=self.parameters)

    def forget_directional(self, direction: Tensors, at: Displacement | None) -> float:
        terms = [self.oracle.directional(Part.FORGET, direction, draw + at) for draw in self._draws()]
        return sum(terms) / len(terms)

    def forget_hvp(self, direction: Tensors, at: Displacement | None) -> list[Tensor]:
        share = 1 / self.settings.samples
        terms = ((share, self.oracle.hvp(Part.FORGET, direction, draw + at)) for draw in self._draws())
        return combined(terms, like=self.parameters)

    def _draws(self) -> Iterator[Displacement]:
        """The displacements sigma xi_i. Each is overwritten by the next one."""
        for index in range(self.settings.samples):
            yield Displacement.along(self._noise(self.steps, index), self.settings.sigma)
