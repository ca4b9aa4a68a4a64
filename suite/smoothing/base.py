"""The base classes of smoothings. A smoothing answers queries by querying the oracle inside it, perhaps elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from suite.config import settings
from suite.optimizers.base import Run
from suite.oracle.base import Displacement, Oracle, Order, Part, Tensors, Wrapping
from suite.oracle.state import Stateful
from suite.smoothing.arithmetic import combined


class SmoothingSettings(settings.Settings):
    """Settings that every smoothing has: a name, a literal in those of each one that is registered."""

    name: str = ""


S = TypeVar("S", bound=SmoothingSettings)


class Smoothing(Wrapping, Stateful, Generic[S]):
    """An oracle that passes every query on to the oracle inside it; a subclass overrides the queries that it changes.

    Args:
        run: length in steps and seed of the run.

    Attributes:
        steps: number of steps that the optimizer has made.
    """

    Settings: type[S]
    smooths: ClassVar[frozenset[Order]] = frozenset(Order)
    """Orders of the queries whose results it changes, or with which it has an effect after the step. With an optimizer
    that makes none of them it would have no effect, so such a trial is refused."""
    source: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings with which it does all that it does within six steps on a small model. Tests make it with them."""
    state = (*Stateful.state, "steps")

    def __init__(self, oracle: Oracle, settings: S, run: Run) -> None:
        super().__init__(oracle)
        self.settings = settings
        self.run = run
        self.steps = 0

    def stepped(self) -> None:
        """Called after the optimizer has moved the weights; averages of iterates are updated here."""
        super().stepped()
        self.steps += 1

    def final_weights(self) -> list[Tensor] | None:
        """The weights to export, shaped like the parameters; None: the parameters themselves."""
        return None


class NoSmoothing(Smoothing["NoSmoothing.Settings"]):
    """No smoothing: the loss at the weights themselves."""

    class Settings(SmoothingSettings):
        name: Literal["none"] = "none"


class ForgetSmoothing(Smoothing[S]):
    """A smoothing of the forget loss. Retain and relearn queries are passed on unchanged.

    A subclass overrides the `forget_` methods. `smooths` says which of them are used; derivatives along a direction
    serve optimizers that otherwise use values, so they belong to Order.VALUE. The total is the smoothed forget loss
    plus the retain loss.
    """

    def forget_values(self, displacements: Sequence[Displacement | None]) -> Tensor:
        return self.oracle.values(Part.FORGET, displacements)

    def forget_gradient(self, at: Displacement | None) -> list[Tensor]:
        return self.oracle.gradient(Part.FORGET, at)

    def forget_directional(self, direction: Tensors, at: Displacement | None) -> float:
        return self.oracle.directional(Part.FORGET, direction, at)

    def forget_hvp(self, direction: Tensors, at: Displacement | None) -> list[Tensor]:
        return self.oracle.hvp(Part.FORGET, direction, at)

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        if not self._changes(Order.VALUE, part):
            return self.oracle.values(part, displacements)
        forget = self.forget_values(displacements)
        return forget if part is Part.FORGET else forget + self.oracle.values(Part.RETAIN, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        if not self._changes(Order.GRADIENT, part):
            return self.oracle.gradient(part, at)
        forget = self.forget_gradient(at)
        return forget if part is Part.FORGET else self._sum(forget, self.oracle.gradient(Part.RETAIN, at))

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        if not self._changes(Order.VALUE, part):
            return self.oracle.directional(part, direction, at)
        forget = self.forget_directional(direction, at)
        return forget if part is Part.FORGET else forget + self.oracle.directional(Part.RETAIN, direction, at)

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        if not self._changes(Order.CURVATURE, part):
            return self.oracle.hvp(part, direction, at)
        forget = self.forget_hvp(direction, at)
        return forget if part is Part.FORGET else self._sum(forget, self.oracle.hvp(Part.RETAIN, direction, at))

    def _changes(self, order: Order, part: Part) -> bool:
        return order in self.smooths and part in (Part.FORGET, Part.TOTAL)

    def _sum(self, one: Tensors, other: Tensors) -> list[Tensor]:
        return combined([(1.0, one), (1.0, other)], like=self.parameters)
