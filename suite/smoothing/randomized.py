"""Randomized smoothing: the forget loss averaged over Gaussian noise on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Run
from suite.oracle.base import Displacement, Oracle, Part, Tensors
from suite.smoothing.arithmetic import combined
from suite.smoothing.base import ForgetSmoothing, SmoothingSettings
from suite.smoothing.neighbourhood import Neighbourhood


class RandomizedSmoothing(ForgetSmoothing):
    """The mean of L_f(theta + sigma xi_i) over n draws of xi ~ N(0, I) (RS in arXiv 2502.05374).

    Values, gradients, derivatives along a direction and Hessian products are all those of this one function, whose
    draws change from step to step. Curvature samples stay those of the weights: their labels are the model's own.
    """

    source = "arXiv 2502.05374"

    class Settings(SmoothingSettings):
        """
        Attributes:
            sigma: standard deviation of the noise on each weight.
            samples: draws per step, n; each costs one question of the kind that was asked.
        """

        name: Literal["rs"] = "rs"
        sigma: float = Field(1e-4, gt=0)
        samples: int = Field(3, ge=1)

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        super().__init__(oracle, settings, run)
        self._noise = Neighbourhood(oracle.parameters, run.seed, settings.name)

    def forget_values(self, displacements: Sequence[Displacement | None]) -> Tensor:
        draws = [
            self.oracle.values(Part.FORGET, [step + displacement for displacement in displacements])
            for step in self._steps()
        ]
        return torch.stack(draws).mean(0)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        share = 1 / self.settings.samples
        answers = ((share, self.oracle.gradient(Part.FORGET, step + at)) for step in self._steps())
        return combined(answers, like=self.parameters)

    def forget_directional(self, direction: Tensors, at: Displacement | None) -> float:
        answers = [self.oracle.directional(Part.FORGET, direction, step + at) for step in self._steps()]
        return sum(answers) / len(answers)

    def forget_hvp(self, direction: Tensors, at: Displacement | None) -> list[Tensor]:
        share = 1 / self.settings.samples
        answers = ((share, self.oracle.hvp(Part.FORGET, direction, step + at)) for step in self._steps())
        return combined(answers, like=self.parameters)

    def _steps(self) -> Iterator[Displacement]:
        """Each is gone when the next one is asked for."""
        for index in range(self.settings.samples):
            yield Displacement.along(self._noise(self.steps, index), self.settings.sigma)
