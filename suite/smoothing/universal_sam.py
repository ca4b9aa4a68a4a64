"""Universal sharpness: a function of the forget loss's Hessian, estimated from loss values around the weights alone.

For xi ~ N(0, I) and H the Hessian, second differences
    c_i = [f(theta + s xi_i) + f(theta - s xi_i) - 2 f(theta)] / s^2
have the mean tr H and the variance 2 ||H||_F^2, exactly where f is quadratic and up to s^2 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Run
from suite.oracle.base import Displacement, Oracle, Order, Part, Tensors
from suite.smoothing.arithmetic import combined
from suite.smoothing.base import ForgetSmoothing, SmoothingSettings
from suite.smoothing.neighbourhood import Neighbourhood

Form = Literal["trace", "frobenius"]


class UniversalSharpness(ForgetSmoothing["UniversalSharpness.Settings"]):
    """The forget loss plus weight * tr H, or weight * ||H||_F^2, estimated without a second derivative.

    The measures are those of arXiv 2406.03682 (Frob-SAM is its Frobenius form); unbiased estimators and defaults are
    ours. Values, gradients and derivatives along a direction are those of one penalised function, whose noise
    changes from step to step. Hessian products are those of the forget loss alone. With the trace and
    weight = sigma^2 / 2 this is randomized smoothing that also uses each draw's opposite.
    """

    smooths = frozenset({Order.VALUE, Order.GRADIENT})
    source = "arXiv 2406.03682"
    example: ClassVar[Mapping[str, Any]] = {"weight": 1e-7}

    class Settings(SmoothingSettings):
        """
        Attributes:
            form: what is penalised. At a saddle the trace may be zero, but the Frobenius norm is not.
            weight: factor of the penalty.
            sigma: standard deviation of the noise on each weight, s.
            samples: draws per step; each costs two queries.
        """

        name: Literal["universal_sam"] = "universal_sam"
        form: Form = "frobenius"
        weight: float = Field(1e-4, gt=0)
        sigma: float = Field(1e-3, gt=0)
        samples: int = Field(3, ge=2)

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        super().__init__(oracle, settings, run)
        self._noise = Neighbourhood(oracle.parameters, run.seed, settings.name)

    def forget_values(self, displacements: Sequence[Displacement | None]) -> Tensor:
        centre = self.oracle.values(Part.FORGET, displacements)
        differences = self._differences(displacements, centre)
        penalty = torch.stack([sharpness(c, self.settings.form) for c in differences.unbind(1)])
        return centre + self.settings.weight * penalty

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        return combined(self._gradients(self._slopes(at), at), like=self.parameters)

    def forget_directional(self, direction: Tensors, at: Displacement | None) -> float:
        slopes = self._slopes(at)
        total = (1 - 2 * sum(slopes)) * self.oracle.directional(Part.FORGET, direction, at)
        for slope, pair in zip(slopes, self._pairs(), strict=True):
            total += slope * sum(self.oracle.directional(Part.FORGET, direction, side + at) for side in pair)
        return total

    def _gradients(self, slopes: list[float], at: Displacement | None) -> Iterator[tuple[float, list[Tensor]]]:
        yield 1 - 2 * sum(slopes), self.oracle.gradient(Part.FORGET, at)
        for slope, pair in zip(slopes, self._pairs(), strict=True):
            for side in pair:
                yield slope, self.oracle.gradient(Part.FORGET, side + at)

    def _slopes(self, at: Displacement | None) -> list[float]:
        """The derivative of the penalised loss by the loss at each point of each pair."""
        s = self.settings
        differences = torch.zeros(s.samples, dtype=torch.float64)
        if s.form == "frobenius":  # the trace is linear in the differences: their values do not matter
            differences = self._differences([at], self.oracle.values(Part.FORGET, [at])).squeeze(1)
        return (sharpness_slopes(differences, s.form) * (s.weight / s.sigma**2)).tolist()

    def _differences(self, displacements: Sequence[Displacement | None], centre: Tensor) -> Tensor:
        """c_i around each displacement: (samples, displacements)."""
        rows = []
        for pair in self._pairs():
            sides = [side + displacement for displacement in displacements for side in pair]
            around = self.oracle.values(Part.FORGET, sides).view(len(displacements), 2)
            rows.append((around.sum(1) - 2 * centre) / self.settings.sigma**2)
        return torch.stack(rows)

    def _pairs(self) -> Iterator[tuple[Displacement, Displacement]]:
        """The displacements s xi_i and -s xi_i. Each pair is overwritten by the next one."""
        for index in range(self.settings.samples):
            noise = self._noise(self.steps, index)
            yield Displacement.along(noise, self.settings.sigma), Displacement.along(noise, -self.settings.sigma)


def sharpness(differences: Tensor, form: Form) -> Tensor:
    """tr H as the mean of the second differences (n,), or ||H||_F^2 as half their unbiased variance; 0-dimensional."""
    return differences.mean() if form == "trace" else differences.var() / 2


def sharpness_slopes(differences: Tensor, form: Form) -> Tensor:
    """The derivative of `sharpness` by each difference: (n,)."""
    n = len(differences)
    if form == "trace":
        return torch.full_like(differences, 1 / n)
    return (differences - differences.mean()) / (n - 1)
