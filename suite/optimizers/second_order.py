"""Second-order optimizers: the direction is scaled by an estimate of the curvature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Optimizer, OptimizerSettings, Plan
from suite.oracle import Grade, Oracle


class Sophia(Optimizer):
    """Sophia-G: clipped descent preconditioned by a Gauss-Newton-Bartlett diagonal (arXiv 2305.14342, Alg. 3).

        m <- b1 m + (1 - b1) g;  every k steps h <- b2 h + (1 - b2) B ghat^2;
        x <- x - lr clip(m / max(gamma h, eps), 1)

    ghat is the gradient with labels resampled from the model, B their number. Published unlearning code squares the
    minibatch gradient in every step instead, which is a first-order method.
    """

    grade = Grade.SECOND
    source = "arXiv 2305.14342"

    class Settings(OptimizerSettings):
        """gamma: how much of the curvature counts; larger means smaller steps along curved coordinates.

        every: steps between two curvature samples.
        """

        name: Literal["sophia"] = "sophia"
        betas: tuple[float, float] = (0.965, 0.99)
        gamma: float = Field(0.05, gt=0)
        eps: float = Field(1e-12, gt=0)
        every: int = Field(10, ge=1)
        weight_decay: float = Field(0.0, ge=0)

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], plan: Plan) -> None:
        super().__init__(settings, parameters, plan)
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.curvature = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def move(self, oracle: Oracle) -> None:
        s, lr, weights = self.settings, self.lr, list(self.parameters)
        with torch.enable_grad():
            gradient = oracle.gradient()
            sample = oracle.curvature_sample() if self.taken % s.every == 0 else None
        if sample:
            torch._foreach_mul_(self.curvature, s.betas[1])
            scale = (1 - s.betas[1]) * sample.count
            torch._foreach_addcmul_(self.curvature, sample.gradient, sample.gradient, value=scale)
        torch._foreach_lerp_(self.mean, gradient, 1 - s.betas[0])
        scaled = torch._foreach_mul(self.curvature, s.gamma)
        torch._foreach_clamp_min_(scaled, s.eps)
        step = torch._foreach_div(self.mean, scaled)
        torch._foreach_clamp_min_(step, -1.0)
        torch._foreach_clamp_max_(step, 1.0)
        if s.weight_decay:
            torch._foreach_mul_(weights, 1 - lr * s.weight_decay)
        torch._foreach_add_(weights, step, alpha=-lr)
