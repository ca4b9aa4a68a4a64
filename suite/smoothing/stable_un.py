"""StableUN: the forget gradient after a look-ahead step and a perturbation, projected against the retain gradient."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Run
from suite.oracle.base import Displacement, Oracle, Order, Part, Tensors, norm
from suite.smoothing.arithmetic import combined, displaced_weights, project
from suite.smoothing.base import Smoothing, SmoothingSettings
from suite.smoothing.neighbourhood import Neighbourhood


class StableUnlearning(Smoothing["StableUnlearning.Settings"]):
    """Gradients after a look-ahead step (arXiv 2509.20230), reconstructed by us from its description.

    1. The inner step: theta' = theta - inner_lr * grad L.
    2. Forgetting feedback g_f: the forget gradient at theta' + e.
    3. Remembering feedback g_r: the retain gradient at theta'.
    4. The result: g_r + g_f, where g_f has lost its component against g_r (`project`).

    Every e has norm rho, so that the perturbations differ in their direction alone:
        adversarial: up the forget loss, as in SAM;
        gaussian: a random direction;
        relearn: down the cross-entropy of the forget answers, a simulated relearning step;
        historical: toward the mean of the weights so far, but not beyond it.

    For the forget loss alone the result is g_f without projection. Values and Hessian products are those at the
    weights. The defaults are ours.
    """

    smooths = frozenset({Order.GRADIENT})
    source = "arXiv 2509.20230"
    state = (*Smoothing.state, "history")

    class Settings(SmoothingSettings):
        """
        Attributes:
            inner_lr: step size of the inner step, in units of the parameter per unit of gradient.
            perturbation: direction of e.
            rho: norm of e, L2 over all weights.
        """

        name: Literal["stable_un"] = "stable_un"
        inner_lr: float = Field(1e-3, gt=0)
        perturbation: Literal["adversarial", "gaussian", "relearn", "historical"] = "adversarial"
        rho: float = Field(0.01, gt=0)

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        super().__init__(oracle, settings, run)
        self._noise = Neighbourhood(oracle.parameters, run.seed, settings.name)
        self.history: list[Tensor] = []
        """Sum in fp32 of the weights before the first step and after each; empty unless perturbation=historical."""
        if settings.perturbation == "historical":
            self.history = [p.detach().to(torch.float32, copy=True) for p in oracle.parameters]

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        if part in (Part.RETAIN, Part.RELEARN):
            return self.oracle.gradient(part, at)
        inner = Displacement.along(self.oracle.gradient(Part.TOTAL, at), -self.settings.inner_lr) + at
        perturbation = self._perturbation(inner)
        forget = self.oracle.gradient(Part.FORGET, inner if perturbation is None else perturbation + inner)
        if part is Part.FORGET:
            return forget
        retain = self.oracle.gradient(Part.RETAIN, inner)
        return combined([(1.0, project(forget, retain)), (1.0, retain)], like=self.parameters)

    def stepped(self) -> None:
        super().stepped()
        if self.history:
            for total, weight in zip(self.history, self.parameters, strict=True):
                total.add_(weight.detach())

    def _perturbation(self, inner: Displacement) -> Displacement | None:
        """The perturbation e of the weights after the inner step; None if its direction is zero."""
        rho = self.settings.rho
        match self.settings.perturbation:
            case "adversarial":
                return _along(self.oracle.gradient(Part.FORGET, inner), rho)
            case "gaussian":
                return _along(self._noise(self.steps), rho)
            case "relearn":
                return _along(self.oracle.gradient(Part.RELEARN, inner), -rho)
        to_mean = combined(
            [(1 / (self.steps + 1), self.history), (-1.0, displaced_weights(self.parameters, inner))], like=self.history
        )
        return _along(to_mean, min(rho, float(norm(to_mean))))


def _along(direction: Tensors, length: float) -> Displacement | None:
    own = float(norm(direction))
    return Displacement.along(direction, length / own) if own else None
