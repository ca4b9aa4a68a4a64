"""A smoothing answers an optimizer's questions by asking the oracle inside it, perhaps elsewhere or more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from suite import settings
from suite.oracle import CurvatureSample, Displacement, Oracle, Part, Tensors


class SmoothingSettings(settings.Settings):
    """Settings that every smoothing has: none yet."""


class Smoothing:
    """An oracle that passes every question on; a smoothing overrides the questions that it changes."""

    Settings: ClassVar[type[SmoothingSettings]] = SmoothingSettings

    def __init__(self, oracle: Oracle, settings: SmoothingSettings) -> None:
        self.oracle = oracle
        self.settings = settings

    @property
    def parameters(self) -> Sequence[Tensor]:
        return self.oracle.parameters

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        return self.oracle.values(part, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        return self.oracle.gradient(part, at)

    def directional(self, part: Part, direction: Tensors) -> float:
        return self.oracle.directional(part, direction)

    def curvature_sample(self) -> CurvatureSample:
        return self.oracle.curvature_sample()

    def hvp(self, part: Part, direction: Tensors) -> list[Tensor]:
        return self.oracle.hvp(part, direction)

    def compressed(self, bits: int) -> None:
        self.oracle.compressed(bits)


class NoSmoothing(Smoothing):
    """The point itself."""

    class Settings(SmoothingSettings):
        name: Literal["none"] = "none"
