"""Sharpness-aware unlearning: the forget loss where it is easiest to bring back, within a ball around the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from suite.oracle import Displacement, Order, Part, norm
from suite.smoothing.base import Smoothing, SmoothingSettings


class SharpnessAware(Smoothing):
    """Forget gradients from the worst point within rho; retain gradients from where we stand (arXiv 2502.05374, Eq. 6).

    Loss values are those of the point itself: the worst point is found with a gradient, and a zeroth-order optimizer
    must not be handed one. Its norm is global over all trainable tensors.
    """

    smooths = frozenset({Order.GRADIENT})
    source = "arXiv 2502.05374"

    class Settings(SmoothingSettings):
        """rho: radius of the ball, L2 over all weights."""

        name: Literal["sam"] = "sam"
        rho: float = Field(0.01, gt=0)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        if part is Part.RETAIN:
            return self.oracle.gradient(part, at)
        ascent = self.oracle.gradient(Part.FORGET, at)
        length = float(norm(ascent))
        if length == 0:  # flat: every point of the ball is as bad
            return self.oracle.gradient(part, at)
        worst = Displacement.along(ascent, self.settings.rho / length) + at
        forget = self.oracle.gradient(Part.FORGET, worst)
        if part is Part.FORGET:
            return forget
        return [f + r for f, r in zip(forget, self.oracle.gradient(Part.RETAIN, at), strict=True)]
