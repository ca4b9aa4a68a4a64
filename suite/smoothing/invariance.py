"""Invariance: rescaling the unlearned weights should not lower the loss of any environment an attacker may train in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.oracle.base import Displacement, Order, Part, Tensors
from suite.smoothing.arithmetic import combined, displaced_weights, dot
from suite.smoothing.base import ForgetSmoothing, SmoothingSettings


class Invariance(ForgetSmoothing["Invariance.Settings"]):
    """+ weight * sum_e (d/dw L_e(w theta) at w = 1)^2 = weight * sum_e <grad L_e, theta>^2, e in relearn and retain.

    This is the penalty of IRMv1 (arXiv 1907.02893) with the scale of the trainable weights as the dummy classifier, as
    in invariant unlearning (ILU, arXiv 2506.01339). The environments are losses on the step's own texts: relearning the
    forget answers, and the retain loss. With s_e = <grad L_e, theta> its gradient is
        2 weight * sum_e s_e (H_e theta + grad L_e).
    Values need derivatives along theta in forward mode. The penalty belongs to the forget loss. Hessian products are
    those of the forget loss alone: the penalty's would need third derivatives. The default weight is ours.
    """

    smooths = frozenset({Order.VALUE, Order.GRADIENT})
    source = "arXiv 1907.02893, arXiv 2506.01339"
    environments: ClassVar[tuple[Part, ...]] = (Part.RELEARN, Part.RETAIN)

    class Settings(SmoothingSettings):
        """weight: factor of the penalty."""

        name: Literal["irm"] = "irm"
        weight: float = Field(1.0, gt=0)

    def forget_values(self, displacements: Sequence[Displacement | None]) -> Tensor:
        values = self.oracle.values(Part.FORGET, displacements)
        return values + self.settings.weight * torch.tensor([self._penalty(d) for d in displacements]).to(values)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        return combined(self._gradients(at), like=self.parameters)

    def forget_directional(self, direction: Tensors, at: Displacement | None) -> float:
        theta = displaced_weights(self.parameters, at)
        total = self.oracle.directional(Part.FORGET, direction, at)
        for part in self.environments:
            scale = self.oracle.directional(part, theta, at)
            curvature = dot(self.oracle.hvp(part, self._typed(direction), at), theta)
            total += 2 * self.settings.weight * scale * (curvature + self.oracle.directional(part, direction, at))
        return total

    def _penalty(self, at: Displacement | None) -> float:
        theta = displaced_weights(self.parameters, at)
        return sum(self.oracle.directional(part, theta, at) ** 2 for part in self.environments)

    def _gradients(self, at: Displacement | None) -> Iterator[tuple[float, list[Tensor]]]:
        theta = displaced_weights(self.parameters, at)
        yield 1.0, self.oracle.gradient(Part.FORGET, at)
        for part in self.environments:
            gradient = self.oracle.gradient(part, at)
            factor = 2 * self.settings.weight * dot(gradient, theta)
            yield factor, gradient
            yield factor, self.oracle.hvp(part, self._typed(theta), at)

    def _typed(self, direction: Tensors) -> list[Tensor]:
        return [d.to(p.dtype) for d, p in zip(direction, self.parameters, strict=True)]
