"""AdaHessian: Adam with the second moment of the Hessian's diagonal, estimated by Hutchinson's method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Count, Decay
from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.first_order import fp32, zeros
from suite.oracle import noise
from suite.oracle.base import Grade, Oracle, Part

_KEY = 2006_00719
"""Separates the keys of the signs drawn here from other keys of the run's seed and a count."""


def spatial_average(diagonal: Tensor, block: int) -> Tensor:
    """Each block of `block` neighbours along the last dimension replaced by its mean (Eq. 10).

    The last block of a row may be shorter. Vectors (biases, norms) stay as they are.
    """
    if block == 1 or diagonal.ndim < 2:
        return diagonal
    width = diagonal.shape[-1]
    rows = diagonal.reshape(1, -1, width)
    means = torch.nn.functional.avg_pool1d(rows, block, ceil_mode=True)
    return means.repeat_interleave(block, -1)[..., :width].reshape(diagonal.shape)


class AdaHessian(Optimizer["AdaHessian.Settings"]):
    """AdaHessian (Yao et al. 2021, arXiv 2006.00719, Alg. 1, and its published code for decay and eps).

        m <- b1 m + (1 - b1) g;  D = |z * Hz| with z of random signs, spatially averaged;
        every k steps v <- b2 v + (1 - b2) D^2;
        x <- x - lr (mhat / (vhat^(power/2) + eps) + decay x)

    mhat and vhat are bias-corrected, each by the number of terms that it averages. E[z * Hz] is the diagonal of the
    Hessian; for a diagonal Hessian every draw equals it. A coordinate whose first draw happens to be small takes a long
    first step, of up to mhat / eps, so use a warmup. One Hessian-vector product costs about two gradients and, by
    double backward, several times the memory of one.
    """

    grade = Grade.SECOND
    source = "arXiv 2006.00719"
    queries_per_step = "1 gradient + 1 curvature every k"
    example: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "every": 2}
    state = (*Optimizer.state, "own_steps", "mean", "square")

    class Settings(OptimizerSettings):
        """power: exponent of the curvature in the step; 1 divides by it, towards 0 it counts less.

        block: neighbours in a row whose curvature is averaged; 1, as in the published code for linear layers, averages
        nothing. every: steps between two Hessian-vector products; published: 1.
        """

        name: Literal["adahessian"] = "adahessian"
        betas: tuple[Decay, Decay] = (0.9, 0.999)
        eps: float = Field(1e-4, gt=0)
        power: float = Field(1.0, gt=0, le=1)
        block: Count = 1
        every: Count = 1
        weight_decay: float = Field(0.0, ge=0)

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.mean, self.square = zeros(parameters), zeros(parameters)
        self.own_steps = 0  # its own steps: in a hybrid they are fewer than the run's

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        s = self.settings
        gradient = fp32(oracle.gradient())
        if self.own_steps % s.every == 0:
            diagonal = [spatial_average(d.abs_(), s.block) for d in hutchinson(oracle, (self.run.seed, self.own_steps))]
            torch._foreach_mul_(self.square, s.betas[1])
            torch._foreach_addcmul_(self.square, diagonal, diagonal, value=1 - s.betas[1])
        torch._foreach_lerp_(self.mean, gradient, 1 - s.betas[0])
        self.own_steps += 1
        mean_correction = 1 - s.betas[0] ** self.own_steps
        square_correction = 1 - s.betas[1] ** math.ceil(self.own_steps / s.every)
        scale = torch._foreach_div(self.square, square_correction)
        torch._foreach_pow_(scale, s.power / 2)
        torch._foreach_add_(scale, s.eps)
        direction = torch._foreach_div(self.mean, mean_correction)
        torch._foreach_div_(direction, scale)
        if s.weight_decay:
            torch._foreach_add_(direction, fp32(self.parameters), alpha=s.weight_decay)
        return direction


def hutchinson(oracle: Oracle, key: noise.Key, part: Part = Part.TOTAL) -> list[Tensor]:
    """z * Hz with z of random signs, in fp32: an unbiased estimate of the Hessian's diagonal from one product."""
    z = zeros(oracle.parameters)
    noise.fill_signs(z, (*key, _KEY))
    product = oracle.hvp(part, [t.to(p.dtype) for t, p in zip(z, oracle.parameters, strict=True)])
    return list(torch._foreach_mul(fp32(product), z))
