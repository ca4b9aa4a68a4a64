"""A smoothing answers an optimizer's questions by asking the oracle inside it, perhaps elsewhere or more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from suite import settings
from suite.optimizers.base import Plan
from suite.oracle import CurvatureSample, Displacement, Oracle, Order, Part, Tensors
from suite.state import Stateful


class SmoothingSettings(settings.Settings):
    """Settings that every smoothing has: none yet."""


class Smoothing(Stateful):
    """An oracle that passes every question on; a smoothing overrides the questions that it changes.

    Args:
        plan: the run that it is part of: its length in steps, and the seed of what it draws.
    """

    Settings: ClassVar[type[SmoothingSettings]] = SmoothingSettings
    smooths: ClassVar[frozenset[Order]] = frozenset(Order)
    """Orders of the questions that it answers differently, or for which it does its work after the step. An optimizer
    that asks none of them would not notice it, and a trial of the two is refused."""
    source: ClassVar[str] = ""

    def __init__(self, oracle: Oracle, settings: SmoothingSettings, plan: Plan) -> None:
        self.oracle = oracle
        self.settings = settings
        self.plan = plan

    @property
    def parameters(self) -> Sequence[Tensor]:
        return self.oracle.parameters

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        return self.oracle.values(part, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        return self.oracle.gradient(part, at)

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        return self.oracle.directional(part, direction, at)

    def curvature_sample(self) -> CurvatureSample:
        return self.oracle.curvature_sample()

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        return self.oracle.hvp(part, direction, at)

    def compressed(self, bits: int) -> None:
        self.oracle.compressed(bits)

    def stepped(self) -> None:
        """The optimizer has moved the weights; averages of iterates take note here."""
        self.oracle.stepped()

    def published(self) -> list[Tensor] | None:
        """The weights to publish, shaped like the parameters; None: where they stand."""
        return None


class NoSmoothing(Smoothing):
    """The point itself."""

    class Settings(SmoothingSettings):
        name: Literal["none"] = "none"
