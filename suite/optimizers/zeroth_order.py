"""Zeroth-order optimizers: only loss values are asked for.

A central difference along random directions u with root-mean-square 1 per coordinate,
    g = 1 / (2 r q) * sum_i [f(x + r u_i) - f(x - r u_i)] u_i,
is, for u uniform on the sphere of norm sqrt(d), an unbiased estimate of the gradient of the smoothed loss
f_r(x) = E f(x + r v), v uniform in the ball of norm sqrt(d) (Flaxman et al. 2005; Eq. 3 of arXiv 2510.00761, whose
unit-sphere mu is r sqrt(d) here and whose factor d is written out).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite import settings
from suite.optimizers.base import Optimizer, OptimizerSettings, Plan
from suite.oracle import Displacement, Grade, Oracle, Part

ULPS = 10
"""A difference of fewer units in the last place of the loss (as fp32 computes it) is rounding, not slope."""


class ZerothOrder(settings.Settings):
    """How the gradient is estimated.

    Attributes:
        samples: random directions per step, q; each costs two values.
        radius: root-mean-square displacement per coordinate, r.
    """

    samples: int = Field(1, ge=1)
    radius: float = Field(1e-3, gt=0)


class CentralDifference:
    """The two-point estimate along q directions on the sphere. Draws each direction once, on the weights' device.

    Attributes:
        drowned: differences so far that rounding may have made.
    """

    def __init__(self, settings: ZerothOrder, parameters: Sequence[Tensor], seed: int) -> None:
        self.settings = settings
        device = parameters[0].device
        self.generator = torch.Generator(device=device).manual_seed(seed)
        size = sum(p.numel() for p in parameters)
        self._noise = torch.empty(size, device=device)  # fp32 for weights of any dtype
        self._sum = torch.empty(size, device=device)
        self._noise_parts = _split(self._noise, parameters)
        self._sum_parts = _split(self._sum, parameters)
        self.drowned = 0

    def __call__(self, oracle: Oracle, part: Part = Part.TOTAL) -> list[Tensor]:
        """The estimate, in fp32, shaped like the parameters; overwritten by the next call."""
        q, r = self.settings.samples, self.settings.radius
        self._sum.zero_()
        for _ in range(q):
            self._noise.normal_(generator=self.generator)
            # The noise becomes a direction on the sphere by a factor alone, which spares a pass over the weights.
            to_sphere = math.sqrt(self._noise.numel()) / float(torch.linalg.vector_norm(self._noise))
            reach = r * to_sphere
            forth, back = Displacement.along(self._noise_parts, reach), Displacement.along(self._noise_parts, -reach)
            ahead, behind = oracle.values(part, [forth, back]).tolist()
            self._guard(ahead, behind)
            self._sum.add_(self._noise, alpha=(ahead - behind) / (2 * r * q) * to_sphere)
        return self._sum_parts

    def _guard(self, ahead: float, behind: float) -> None:
        ulp = max(abs(ahead), abs(behind)) * torch.finfo(torch.float32).eps
        if abs(ahead - behind) >= ULPS * ulp:
            return
        if not self.drowned:
            warnings.warn(
                f"a zeroth-order difference drowned in rounding: |{ahead:.9g} - {behind:.9g}| is under {ULPS} ulp. "
                f"Raise optimizer.zo.radius (now {self.settings.radius:g})",
                stacklevel=2,
            )
        self.drowned += 1


class RAdaZO(Optimizer):
    """R-AdaZO (Shu et al. 2025, arXiv 2502.01014): Adam whose second moment comes from the *smoothed* estimate.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) m^2;  x <- x - lr m / sqrt(v + eps)

    As published there is no bias correction, so a run begins with steps of up to sqrt(1 / (1 - b2)) lr: warm up.
    """

    grade = Grade.ZEROTH
    source = "arXiv 2502.01014"

    class Settings(OptimizerSettings):
        """betas: decay of the first moment, and of the second moment's average of squared first moments."""

        name: Literal["r_adazo"] = "r_adazo"
        betas: tuple[float, float] = (0.9, 0.99)
        eps: float = Field(1e-8, gt=0)
        zo: ZerothOrder = ZerothOrder()

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], plan: Plan) -> None:
        super().__init__(settings, parameters, plan)
        self.estimate = CentralDifference(settings.zo, parameters, plan.seed)
        self.mean = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        self.square = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]

    @torch.no_grad()
    def move(self, oracle: Oracle) -> None:
        s = self.settings
        torch._foreach_lerp_(self.mean, self.estimate(oracle), 1 - s.betas[0])
        torch._foreach_mul_(self.square, s.betas[1])
        torch._foreach_addcmul_(self.square, self.mean, self.mean, value=1 - s.betas[1])
        scale = torch._foreach_add(self.square, s.eps)
        torch._foreach_sqrt_(scale)
        step = torch._foreach_div(self.mean, scale)
        for weight, part in zip(self.parameters, step, strict=True):
            weight.add_(part, alpha=-self.lr)


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat tensor, one shaped like each of these."""
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]
