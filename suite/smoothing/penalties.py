"""Penalties on the norm of the forget gradient, or on how fast that gradient changes, with their exact gradients.

A penalty is a function of the gradient, so its own gradient needs Hessian-vector products H u. Two forms compute them:
`exact` by double backward, `difference` by one more gradient, [g(theta + r u/|u|) - g(theta)] |u| / r.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field
from torch import Tensor

from suite.oracle.base import Displacement, Order, Part, Tensors, norm
from suite.smoothing.arithmetic import combined, dot
from suite.smoothing.base import ForgetSmoothing, SmoothingSettings


class PenaltySettings(SmoothingSettings):
    """Settings of both penalties.

    Attributes:
        weight: factor of the penalty.
        form: how Hessian-vector products are computed: double backward, or a difference of gradients.
        radius: length r of that difference, L2 over all weights. bf16 weights round a short one away.
    """

    weight: float = Field(10.0, gt=0)
    form: Literal["exact", "difference"] = "exact"
    radius: float = Field(1e-3, gt=0)


P = TypeVar("P", bound=PenaltySettings)


class Penalty(ForgetSmoothing[P]):
    """The forget loss plus weight * penalty; only gradients include the penalty.

    A penalty's value is computed from gradients, which a zeroth-order optimizer must not receive. So values are those
    of the forget loss alone, and so are Hessian products.
    """

    smooths = frozenset({Order.GRADIENT})
    source = "arXiv 2502.05374"

    def product(self, direction: Tensors, at: Displacement | None, gradient: Tensors) -> list[Tensor]:
        """H(theta + at) times a direction; `gradient` is the forget gradient at the same displacement."""
        if self.settings.form == "exact":
            like = [d.to(p.dtype) for d, p in zip(direction, self.parameters, strict=True)]
            return self.oracle.hvp(Part.FORGET, like, at)
        length = float(norm(direction))
        if length == 0:
            return list(direction)
        radius = self.settings.radius
        ahead = self.oracle.gradient(Part.FORGET, Displacement.along(direction, radius / length) + at)
        return combined([(length / radius, ahead), (-length / radius, gradient)], like=direction)


class GradientPenalty(Penalty["GradientPenalty.Settings"]):
    """+ weight * ||grad L_f||_2 (GP in arXiv 2502.05374). Its gradient is H v with v = g / ||g||.

    Where the gradient is zero the norm is not differentiable, and the penalty adds nothing.
    """

    class Settings(PenaltySettings):
        name: Literal["gp"] = "gp"

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        gradient = self.oracle.gradient(Part.FORGET, at)
        length = float(norm(gradient))
        if length == 0:
            return gradient
        ascent = combined([(1 / length, gradient)], like=gradient)
        return combined(
            [(1.0, gradient), (self.settings.weight, self.product(ascent, at, gradient))], like=self.parameters
        )


class CurvaturePenalty(Penalty["CurvaturePenalty.Settings"]):
    """+ weight * ||g(theta + rho v) - g(theta)||_2, v = g / ||g||, g = grad L_f (CR in arXiv 2502.05374).

    With u the unit vector along the difference, H and H' the Hessians at theta and at theta + rho v, and w = H' u, the
    penalty's gradient is
        w + H [ (rho / ||g||) (w - v <v, w>) - u ],
    including how the direction v changes with theta: two Hessian products, and nothing is held constant.
    """

    class Settings(PenaltySettings):
        """rho: distance to the second gradient, L2 over all weights."""

        name: Literal["cp"] = "cp"
        rho: float = Field(0.01, gt=0)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        rho = self.settings.rho
        gradient = self.oracle.gradient(Part.FORGET, at)
        length = float(norm(gradient))
        if length == 0:
            return gradient
        above = Displacement.along(gradient, rho / length) + at
        ahead = self.oracle.gradient(Part.FORGET, above)
        # In fp32 from here: the two gradients are close to each other.
        wide = [g.float() for g in gradient]
        change = combined([(1.0, ahead), (-1.0, gradient)], like=wide)
        change_norm = float(norm(change))
        if change_norm == 0:
            return gradient
        unit = combined([(1 / change_norm, change)], like=wide)
        w = [p.float() for p in self.product(unit, above, ahead)]
        along = dot(gradient, w) / length**2
        inner = combined([(rho / length, w), (-rho / length * along, gradient), (-1.0, unit)], like=wide)
        correction = self.product(inner, at, gradient)
        weight = self.settings.weight
        return combined([(1.0, gradient), (weight, w), (weight, correction)], like=self.parameters)
