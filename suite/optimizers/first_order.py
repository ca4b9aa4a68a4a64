"""First-order optimizers: one gradient a step. The arithmetic is torch.optim's own (fused where it can be)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Optimizer, OptimizerSettings, Plan
from suite.oracle import Grade, Oracle

Beta = Field(ge=0, lt=1)


class TorchOptimizer(Optimizer):
    """An optimizer of torch.optim, fed with the oracle's gradient."""

    grade = Grade.FIRST

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], plan: Plan) -> None:
        super().__init__(settings, parameters, plan)
        self.inner = self.build(parameters)

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        raise NotImplementedError

    def move(self, oracle: Oracle) -> None:
        feed(self.inner, self.parameters, oracle.gradient(), self.lr)


def feed(inner: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Sequence[Tensor], lr: float) -> None:
    """One step of a torch optimizer with this gradient and step size."""
    for parameter, part in zip(parameters, gradient, strict=True):
        parameter.grad = part
    for group in inner.param_groups:
        group["lr"] = lr
    inner.step()
    for parameter in parameters:
        parameter.grad = None


class SGD(TorchOptimizer):
    """Stochastic gradient descent, with momentum where it is set."""

    source = "torch.optim.SGD"

    class Settings(OptimizerSettings):
        name: Literal["sgd"] = "sgd"
        momentum: float = Field(0.0, ge=0, lt=1)
        weight_decay: float = Field(0.0, ge=0)

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, momentum=self.settings.momentum, weight_decay=self.settings.weight_decay, fused=True
        )


class Adam(TorchOptimizer):
    """Adam (Kingma and Ba 2015); with weight decay, AdamW's decoupled form (Loshchilov and Hutter 2019)."""

    source = "torch.optim.AdamW"

    class Settings(OptimizerSettings):
        name: Literal["adam"] = "adam"
        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)
        weight_decay: float = Field(0.0, ge=0)

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        return adam(parameters, self.settings)


def adam(parameters: Sequence[Tensor], settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=True
    )


class MeanOfSigns(Optimizer):
    """Descent along an average of gradient signs, m <- beta m + (1 - beta) sign(g).

    Often printed as sign-Adam, which is the sign of an average. Its direction has more than one bit a coordinate, so
    its grade is first.
    """

    grade = Grade.FIRST
    source = "control"

    class Settings(OptimizerSettings):
        name: Literal["mean_of_signs"] = "mean_of_signs"
        beta: float = Field(0.9, ge=0, lt=1)

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], plan: Plan) -> None:
        super().__init__(settings, parameters, plan)
        self.mean = [torch.zeros_like(p) for p in parameters]

    def move(self, oracle: Oracle) -> None:
        signs = [g.sign() for g in oracle.gradient()]
        torch._foreach_lerp_(self.mean, signs, 1 - self.settings.beta)
        with torch.no_grad():
            torch._foreach_add_(list(self.parameters), self.mean, alpha=-self.lr)
