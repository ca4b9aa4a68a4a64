"""Curvature-aware unlearning: the update H^-1 v, with H the Hessian of what must be kept.

Coordinates that the retain loss hardly feels are moved far, those it feels are spared. The inverse is never formed:
L-BFGS applies it from a few pairs (s, y = Hs), as subsampled Newton methods do (Byrd et al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.first_order import fp32
from suite.oracle.base import Grade, Oracle, Part, Tensors


def two_loop(v: Tensor, s: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """B v, where B is the BFGS inverse of the pairs, oldest first (Nocedal and Wright 2006, Alg. 7.4).

    It starts from gamma I with gamma = s'y / y'y of the newest pair (their Eq. 7.20); without pairs B is I.

    Args:
        v, s[i], y[i]: one-dimensional, of the same length, with s[i]'y[i] > 0.
    """
    q, passed = v.clone(), []
    for s_i, y_i in zip(reversed(s), reversed(y), strict=True):
        rho = 1 / dot(s_i, y_i)
        alpha = rho * dot(s_i, q)
        q.add_(y_i, alpha=-alpha)
        passed.append((s_i, y_i, rho, alpha))
    if passed:
        q.mul_(dot(s[-1], y[-1]) / dot(y[-1], y[-1]))
    for s_i, y_i, rho, alpha in reversed(passed):
        q.add_(s_i, alpha=alpha - rho * dot(y_i, q))
    return q


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


class LBFGS(Optimizer):
    """Descent along H^-1 v: v the gradient of the total, H the Hessian of the retain loss (arXiv 2511.18039).

    Every k steps a pair is added: s, the way that the weights have gone since the last pair (at first, the gradient),
    of norm 1, and y = H s + damping s from one Hessian-vector product on the step's batch. Pairs along which the retain
    loss curves down, s'y <= floor, are left out, so that H^-1 stays positive definite. How the paper picks its pairs is
    not to be found in print; this is our reading.

    It keeps 2 pairs + 1 copies of the trainable weights in fp32: meant for adapters, not for whole models.
    """

    grade = Grade.SECOND
    source = "arXiv 2511.18039"
    asks = "1 gradient + 1 curvature every k"
    state = (*Optimizer.state, "asked", "s", "y", "left")

    class Settings(OptimizerSettings):
        """pairs: how many are remembered. every: steps between two Hessian-vector products.

        damping: curvature added in all directions; along those that the retain loss does not feel, H^-1 is 1 / damping.
        floor: least curvature along a pair, damping included.
        """

        name: Literal["lbfgs"] = "lbfgs"
        pairs: int = Field(10, ge=1)
        every: int = Field(10, ge=1)
        damping: float = Field(0.1, ge=0)
        floor: float = Field(1e-4, gt=0)

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.s: list[Tensor] = []
        self.y: list[Tensor] = []
        self.left: Tensor | None = None
        """Where the weights stood at the last pair."""
        self.asked = 0

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        v = flat(oracle.gradient())
        if self.asked % self.settings.every == 0:
            self._remember(oracle, v)
        self.asked += 1
        return split(two_loop(v, self.s, self.y), self.parameters)

    def _remember(self, oracle: Oracle, v: Tensor) -> None:
        s, here = self.settings, flat(self.parameters)
        way = v if self.left is None else here - self.left
        self.left = here
        length = float(way.norm())
        if not length:  # weights of bf16 may have stood still
            return
        # The curvature is asked along what the weights' dtype makes of the way, so the pair holds that.
        way = split(way / length, self.parameters)
        asked = [part.to(p.dtype) for part, p in zip(way, self.parameters, strict=True)]
        way, curved = flat(asked), flat(oracle.hvp(Part.RETAIN, asked))
        curved = curved.add(way, alpha=s.damping)
        if dot(way, curved) <= s.floor * dot(way, way):
            return
        self.s, self.y = [*self.s, way][-s.pairs :], [*self.y, curved][-s.pairs :]


def flat(tensors: Tensors) -> Tensor:
    """All numbers one after another, in fp32; a copy."""
    return torch.cat([t.reshape(-1) for t in fp32(tensors)])


def split(vector: Tensor, like: Tensors) -> list[Tensor]:
    """Views of a flat vector, shaped like each of these."""
    return [part.view_as(t) for part, t in zip(vector.split([t.numel() for t in like]), like, strict=True)]
