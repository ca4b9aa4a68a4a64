"""Extrapolation: the gradient is evaluated ahead of the weights, and the step starts from the weights."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Run
from suite.oracle.base import Displacement, Oracle, Order, Part, norm
from suite.smoothing.arithmetic import combined
from suite.smoothing.base import Smoothing, SmoothingSettings
from suite.smoothing.neighbourhood import Neighbourhood


class Extrapolation(Smoothing["Extrapolation.Settings"]):
    """Gradients of all parts at theta - gamma * (gradient of the step before) (Extrap-SGD, arXiv 2006.05720).

    With `kind: noise` the displacement is a random direction of that gradient's norm instead, so the two kinds differ
    only in their direction. The first step has no previous gradient and uses the gradient at the weights. No gamma is
    published for unlearning; the default is ours.
    """

    smooths = frozenset({Order.GRADIENT})
    source = "arXiv 2006.05720"
    state = (*Smoothing.state, "previous", "length")

    class Settings(SmoothingSettings):
        """gamma: distance ahead, in units of the parameter per unit of gradient; kind: its direction."""

        name: Literal["extrapolation"] = "extrapolation"
        gamma: float = Field(0.01, gt=0)
        kind: Literal["gradient", "noise"] = "gradient"

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        super().__init__(oracle, settings, run)
        self.previous: list[Tensor] | None = None
        self.length = 0.0
        self._noise = Neighbourhood(oracle.parameters, run.seed, settings.name)
        self._gradients: dict[Part, list[Tensor]] = {}

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        ahead = self._ahead()
        gradient = self.oracle.gradient(part, at if ahead is None else ahead + at)
        if at is None and part is not Part.RELEARN:
            self._gradients[part] = [g.clone() for g in gradient]  # the caller may overwrite the result
        return gradient

    def stepped(self) -> None:
        super().stepped()
        gradients, self._gradients = self._gradients, {}
        if not gradients:  # e.g. a hybrid's zeroth-order step: the last gradient remains valid
            return
        parts = [gradients[Part.TOTAL]] if Part.TOTAL in gradients else list(gradients.values())
        gradient = parts[0] if len(parts) == 1 else combined([(1.0, g) for g in parts], like=self.parameters)
        self.length = float(norm(gradient))
        self.previous = gradient if self.settings.kind == "gradient" else None

    @torch.no_grad()
    def _ahead(self) -> Displacement | None:
        gamma = self.settings.gamma
        if self.previous is not None:
            return Displacement.along(self.previous, -gamma)
        if self.length == 0:
            return None
        noise = self._noise(self.steps)
        return Displacement.along(noise, gamma * self.length / float(norm(noise)))
