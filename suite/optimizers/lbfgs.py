"""Curvature-aware unlearning: the update H^-1 v, with H the Hessian of the retain loss.

Directions along which the retain loss is flat move far, those along which it is curved move little. The inverse is
never formed: L-BFGS applies it from a few pairs (s, y = Hs), as subsampled Newton methods do (Byrd et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.numbers import Count, Few
from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.first_order import fp32
from suite.oracle.base import Grade, Oracle, Part, Tensors


def two_loop(v: Tensor, s: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """B v, where B is the BFGS inverse of the pairs, oldest first (Nocedal and Wright 2006, Alg. 7.4).

    It starts from gamma I with gamma = s'y / y'y of the newest pair (their Eq. 7.20); without pairs B is I.

    Args:
        v, s[i], y[i]: one-dimensional, of the same length, with s[i]'y[i] > 0.
    """
    q, first_loop = v.clone(), []
    for s_i, y_i in zip(reversed(s), reversed(y), strict=True):
        rho = 1 / dot(s_i, y_i)
        alpha = rho * dot(s_i, q)
        q.add_(y_i, alpha=-alpha)
        first_loop.append((s_i, y_i, rho, alpha))
    if first_loop:
        q.mul_(dot(s[-1], y[-1]) / dot(y[-1], y[-1]))
    for s_i, y_i, rho, alpha in reversed(first_loop):
        q.add_(s_i, alpha=alpha - rho * dot(y_i, q))
    return q


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


class LBFGS(Optimizer["LBFGS.Settings"]):
    """Descent along H^-1 v: v the gradient of the total, H the Hessian of the retain loss (arXiv 2511.18039).

    Every k steps a pair is added: s, the change of the weights since the last pair (at first, the gradient) scaled to
    norm 1, and y = H s + damping s from one Hessian-vector product on the step's batch. Pairs along which the retain
    loss curves down, s'y <= floor, are skipped, so that H^-1 stays positive definite. The paper does not say how it
    picks its pairs; this is our reading.

    It stores 2 pairs + 1 copies of the trainable weights in fp32: meant for adapters, not for whole models.
    """

    grade = Grade.SECOND
    source = "arXiv 2511.18039"
    queries_per_step = "1 gradient + 1 curvature every k"
    example: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "every": 2}
    state = (*Optimizer.state, "own_steps", "s", "y", "last_weights")

    class Settings(OptimizerSettings):
        """pairs: how many are stored. every: steps between two Hessian-vector products.

        damping: curvature added in all directions; along those where the retain loss is flat, H^-1 is 1 / damping.
        floor: smallest curvature allowed along a pair, damping included.
        """

        name: Literal["lbfgs"] = "lbfgs"
        pairs: Few = 10
        every: Count = 10
        damping: float = Field(0.1, ge=0)
        floor: float = Field(1e-4, gt=0)

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.s: list[Tensor] = []
        self.y: list[Tensor] = []
        self.last_weights: Tensor | None = None
        """The weights when the last pair was added."""
        self.own_steps = 0  # fewer than the run's steps in a hybrid

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        v = flat(oracle.gradient())
        if self.own_steps % self.settings.every == 0:
            self._add_pair(oracle, v)
        self.own_steps += 1
        return split(two_loop(v, self.s, self.y), self.parameters)

    def _add_pair(self, oracle: Oracle, v: Tensor) -> None:
        settings, weights = self.settings, flat(self.parameters)
        change = v if self.last_weights is None else weights - self.last_weights
        self.last_weights = weights
        length = float(change.norm())
        if not length:  # bf16 weights may not have moved
            return
        # The Hessian-vector product takes the direction in the weights' dtype, so the pair holds the rounded direction.
        unit = split(change / length, self.parameters)
        rounded = [part.to(p.dtype) for part, p in zip(unit, self.parameters, strict=True)]
        s, y = flat(rounded), flat(oracle.hvp(Part.RETAIN, rounded))
        y = y.add(s, alpha=settings.damping)
        if dot(s, y) <= settings.floor * dot(s, s):
            return
        self.s, self.y = [*self.s, s][-settings.pairs :], [*self.y, y][-settings.pairs :]


def flat(tensors: Tensors) -> Tensor:
    """All tensors concatenated into one fp32 vector; a copy."""
    return torch.cat([t.reshape(-1) for t in fp32(tensors)])


def split(vector: Tensor, like: Tensors) -> list[Tensor]:
    """Views of a flat vector, shaped like each of these."""
    return [part.view_as(t) for part, t in zip(vector.split([t.numel() for t in like]), like, strict=True)]
