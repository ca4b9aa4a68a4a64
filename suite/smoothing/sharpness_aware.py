"""Sharpness-aware unlearning: the forget loss at its worst point within a ball around the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.oracle.base import Displacement, Order, Part, Tensors, norm
from suite.smoothing.arithmetic import displaced_weights
from suite.smoothing.base import ForgetSmoothing, SmoothingSettings


class SharpnessAware(ForgetSmoothing["SharpnessAware.Settings"]):
    """Forget gradients at the worst point within rho, retain gradients at the weights (arXiv 2502.05374, Eq. 6).

    Loss values are those at the weights: the worst point is found with a gradient, and a zeroth-order optimizer must
    not receive one. The norm is global over all trainable tensors.
    """

    smooths = frozenset({Order.GRADIENT})
    source = "arXiv 2502.05374"

    class Settings(SmoothingSettings):
        """rho: radius of the ball, L2 over all weights."""

        name: Literal["sam"] = "sam"
        rho: float = Field(0.01, gt=0)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        ascent = self.oracle.gradient(Part.FORGET, at)
        length = float(norm(ascent))
        if length == 0:  # flat: every point of the ball is as bad
            return ascent
        return self.oracle.gradient(Part.FORGET, Displacement.along(ascent, self.settings.rho / length) + at)


class AdaptiveSharpnessAware(ForgetSmoothing["AdaptiveSharpnessAware.Settings"]):
    """SAM in a ball that grows with each weight: rescaling a layer does not change its sharpness.

    The worst point is e = rho T^2 g / ||T g|| away, with T = |w| + eta for each weight (ASAM, arXiv 2102.11600),
    and rho 0.5, eta 0.01 as published there for images; forget gradients alone, as in SAM.
    """

    smooths = frozenset({Order.GRADIENT})
    source = "arXiv 2102.11600"

    class Settings(SmoothingSettings):
        """
        Attributes:
            rho: radius of the ball ||e / T|| <= rho, L2 over all weights, relative to the weights.
            eta: added to each |w|, so that weights of zero move too.
        """

        name: Literal["asam"] = "asam"
        rho: float = Field(0.5, gt=0)
        eta: float = Field(0.01, gt=0)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        gradient = self.oracle.gradient(Part.FORGET, at)
        ascent = adaptive_ascent(gradient, displaced_weights(self.parameters, at), self.settings.eta)
        if ascent is None:
            return gradient
        return self.oracle.gradient(Part.FORGET, Displacement.along(ascent, self.settings.rho) + at)


@torch.no_grad()
def adaptive_ascent(gradient: Tensors, weights: Sequence[Tensor], eta: float) -> list[Tensor] | None:
    """T^2 g / ||T g|| with T = |w| + eta, in fp32; None where the gradient is zero."""
    scales = [w.float().abs().add_(eta) for w in weights]
    length = float(norm([t * g for t, g in zip(scales, gradient, strict=True)]))
    if length == 0:
        return None
    return [t.square_().mul_(g).div_(length) for t, g in zip(scales, gradient, strict=True)]
