"""Compressed optimizers: a first-order direction m of which only Q(m; b) reaches the weights.

Q stands between the descent direction and the weights (arXiv 2510.00761, Sec. 4): sign-SGD takes the sign of the
gradient, sign-Adam the sign of Adam's direction. With b = 1, Q is the sign; a coordinate whose direction is exactly
zero (an embedding of a token that no batch has) stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Optimizer, OptimizerSettings, Plan
from suite.optimizers.first_order import feed
from suite.oracle import Grade, Oracle


class Compressed(Optimizer):
    """The direction of a torch optimizer, compressed. The step is lr in every coordinate that moves.

    The direction is what the optimizer would add to weights of zero with a step size of one, so it is torch's own.
    """

    grade = Grade.COMPRESSED

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], plan: Plan) -> None:
        super().__init__(settings, parameters, plan)
        self.shadow = [torch.zeros_like(p, requires_grad=True) for p in parameters]
        self.inner = self.build(self.shadow)

    def build(self, shadow: Sequence[Tensor]) -> torch.optim.Optimizer:
        raise NotImplementedError

    def move(self, oracle: Oracle) -> None:
        with torch.no_grad():
            torch._foreach_zero_(self.shadow)
        feed(self.inner, self.shadow, oracle.gradient(), lr=1.0)
        oracle.compressed(bits=1)
        with torch.no_grad():
            torch._foreach_add_(list(self.parameters), [s.sign() for s in self.shadow], alpha=self.lr)


class SignSGD(Compressed):
    """sign-SGD: the sign of the gradient (Bernstein et al. 2018), or of its running mean with momentum (Signum)."""

    source = "arXiv 1802.04434"

    class Settings(OptimizerSettings):
        name: Literal["sign_sgd"] = "sign_sgd"
        momentum: float = Field(0.0, ge=0, lt=1)

    def build(self, shadow: Sequence[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(shadow, momentum=self.settings.momentum, fused=True)


class SignAdam(Compressed):
    """sign-Adam: the sign of Adam's direction (arXiv 2510.00761, Sec. 4)."""

    source = "arXiv 2510.00761"

    class Settings(OptimizerSettings):
        name: Literal["sign_adam"] = "sign_adam"
        betas: tuple[float, float] = (0.9, 0.999)
        eps: float = Field(1e-8, gt=0)

    def build(self, shadow: Sequence[Tensor]) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.Adam(shadow, betas=s.betas, eps=s.eps, fused=True)
