"""Clipped second-order descent: the direction is scaled by an estimate of the Hessian's diagonal, and capped at 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Count, Decay, Few
from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.first_order import fp32, zeros
from suite.oracle.base import Grade, Oracle, Tensors


def clipped(mean: Tensors, curvature: Tensors, gamma: float, eps: float) -> list[Tensor]:
    """clip(m / max(gamma h, eps), 1), coordinate by coordinate (arXiv 2305.14342, Eq. 6)."""
    scale = torch._foreach_mul(list(curvature), gamma)
    torch._foreach_clamp_min_(scale, eps)
    direction = torch._foreach_div(list(mean), scale)
    torch._foreach_clamp_min_(direction, -1.0)
    torch._foreach_clamp_max_(direction, 1.0)
    return list(direction)


class ClippedSettings(OptimizerSettings):
    """gamma: factor of the curvature; a larger one means smaller steps along curved coordinates."""

    betas: tuple[Decay, Decay] = (0.965, 0.99)
    gamma: float = Field(0.05, gt=0)
    eps: float = Field(1e-12, gt=0)
    weight_decay: float = Field(0.0, ge=0)


C = TypeVar("C", bound=ClippedSettings)


class Clipped(Optimizer[C]):
    """m <- b1 m + (1 - b1) g;  x <- x - lr (clip(m / max(gamma h, eps), 1) + decay x), h from a subclass."""

    state = (*Optimizer.state, "own_steps", "mean", "curvature")

    def __init__(self, settings: C, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.mean, self.curvature = zeros(parameters), zeros(parameters)
        self.own_steps = 0  # its own steps: in a hybrid they are fewer than the run's

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        s = self.settings
        gradient = fp32(oracle.gradient())
        self.observe(oracle, gradient)
        self.own_steps += 1
        torch._foreach_lerp_(self.mean, gradient, 1 - s.betas[0])
        direction = clipped(self.mean, self.curvature, s.gamma, s.eps)
        if s.weight_decay:
            torch._foreach_add_(direction, fp32(self.parameters), alpha=s.weight_decay)
        return direction

    def observe(self, oracle: Oracle, gradient: Tensors) -> None:
        """Update the estimate h, given the step's gradient."""
        raise NotImplementedError

    def average(self, gradient: Tensors, count: int) -> None:
        """h <- b2 h + (1 - b2) B g^2, where B = count is the number of labels over which g is a mean."""
        decay = self.settings.betas[1]
        torch._foreach_mul_(self.curvature, decay)
        torch._foreach_addcmul_(self.curvature, list(gradient), list(gradient), value=(1 - decay) * count)


class Sophia(Clipped["Sophia.Settings"]):
    """Sophia-G: clipped descent preconditioned by a Gauss-Newton-Bartlett diagonal (arXiv 2305.14342, Alg. 3).

        m <- b1 m + (1 - b1) g;  every k steps h <- b2 h + (1 - b2) B ghat^2;
        x <- x - lr (clip(m / max(gamma h, eps), 1) + decay x)

    ghat is the gradient with labels resampled from the model, B their number. Published unlearning code instead squares
    the minibatch gradient in every step, which is a first-order method: `empirical_fisher`.
    """

    grade = Grade.SECOND
    source = "arXiv 2305.14342"
    queries_per_step = "1 gradient + 1 curvature every k"
    example: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "every": 2}

    class Settings(ClippedSettings):
        """gamma: factor of the curvature; a larger one means smaller steps along curved coordinates.

        every: steps between two curvature samples.
        """

        name: Literal["sophia"] = "sophia"
        every: Count = 10

    def observe(self, oracle: Oracle, gradient: Tensors) -> None:
        if self.own_steps % self.settings.every == 0:
            sample = oracle.curvature_sample()
            self.average(fp32(sample.gradient), sample.count)


class EmpiricalFisher(Clipped["EmpiricalFisher.Settings"]):
    """Sophia's step with the squared minibatch gradient as curvature, in every step: h <- b2 h + (1 - b2) B g^2.

    This is what published "second-order" unlearning code computes (without its second averaging of m in the same step).
    The labels are the data's, so h does not estimate the Gauss-Newton diagonal, and the grade is first.
    """

    grade = Grade.FIRST
    source = "control"
    control = True
    queries_per_step = "1 gradient"

    class Settings(ClippedSettings):
        """labels: the constant B. Published code uses 5120, whatever the batch."""

        name: Literal["empirical_fisher"] = "empirical_fisher"
        labels: Few = 1

    def observe(self, oracle: Oracle, gradient: Tensors) -> None:
        self.average(gradient, self.settings.labels)
