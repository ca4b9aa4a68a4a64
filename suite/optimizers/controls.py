"""Matched controls: is it the grade that makes forgetting robust, or the noise and the length of its steps?

Each takes one property of a zeroth-order optimizer and leaves the rest out. The property is measured along the run with
the loss values that the zeroth-order optimizer would ask for, so the meter reads values too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.optimizers.base import KINDS, Optimizer, OptimizerSettings, Run
from suite.optimizers.estimates import Differences, ZerothOrder
from suite.optimizers.parts import FIRST_ORDER, ZEROTH_ORDER, whole
from suite.oracle import noise
from suite.oracle.base import Displacement, Grade, Oracle, Part, norm
from suite.oracle.directions import Lazily

NOISE = 1 << 40
"""Keeps the controls' noise apart from the estimators' directions, which count from zero."""


class _Noisy:
    """An oracle whose gradients carry Gaussian noise; all else is the inner oracle's."""

    def __init__(self, oracle: Oracle, deviation: float, key: noise.Key) -> None:
        self.oracle, self.deviation, self.key = oracle, deviation, key
        self.parameters = oracle.parameters

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        gradient = self.oracle.gradient(part, at)
        drawn = noise.gaussian(gradient, self.key)
        return [g.add(z.to(g.dtype), alpha=self.deviation) for g, z in zip(gradient, drawn, strict=True)]


class FirstWithZONoise(Optimizer):
    """A first-order optimizer whose gradient carries the noise of a zeroth-order estimate: same variance, no smoothing.

    An estimate from q directions has the variance (E[slope^2] - |g|^2 / d) / q in each coordinate, whatever the
    direction's kind (exactly for the Gaussian up to g_i^2, on average over coordinates for all); E[slope^2] is the mean
    of what the run has measured so far.
    """

    grade = Grade.HYBRID
    control = True
    source = "control: arXiv 2510.00761's reviews"
    asks = "1 gradient + 2q value every k"
    state = ("steps_done", "first", "measure", "squares", "slopes")

    class Settings(OptimizerSettings):
        """every: steps between two measurements of the variance. zo: of the estimate that is imitated."""

        name: Literal["first_with_zo_noise"] = "first_with_zo_noise"
        first: FIRST_ORDER.parts = FIRST_ORDER.default("adam")  # type: ignore[name-defined]
        every: int = Field(1, ge=1)
        zo: ZerothOrder = ZerothOrder()

        @model_validator(mode="after")
        def _belong_together(self) -> FirstWithZONoise.Settings:
            whole(FIRST_ORDER, self.first, self, lr=self.lr)
            return self

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        first = whole(FIRST_ORDER, settings.first, settings, lr=settings.lr)
        self.first: Optimizer = FIRST_ORDER[first.name](first, parameters, run)
        self.measure = _Slopes(settings.zo, parameters, run.seed)
        self.squares, self.slopes = 0.0, 0

    @property
    def drowned(self) -> int:
        """Differences so far that rounding may have made."""
        return self.measure.drowned

    def move(self, oracle: Oracle) -> None:
        if self.steps_done % self.settings.every == 0:
            self.measure(oracle)
            self.squares += sum(slope**2 for slope in self.measure.last)
            self.slopes += len(self.measure.last)
        self.first.steps_done = self.steps_done
        self.first.move(_Noisy(oracle, self.deviation(oracle), (self.run.seed, NOISE, self.steps_done)))

    def deviation(self, oracle: Oracle) -> float:
        """Standard deviation of the imitated estimate, per coordinate; |g|^2 / d is below what can be measured."""
        return (self.squares / self.slopes / self.settings.zo.samples) ** 0.5


class _Slopes(Differences):
    """Differences that remember their slopes."""

    last: Sequence[float] = ()

    def slopes(self, *asked) -> list[float]:
        found = super().slopes(*asked)
        self.last = [*self.last, *found]
        return found

    def __call__(self, *asked) -> Sequence[Tensor]:
        self.last = []
        return super().__call__(*asked)


class _AtZONorm(Optimizer):
    """Steps of the length that a zeroth-order optimizer would have made. `lr` is that optimizer's."""

    control = True
    source = "control: arXiv 2510.00761's reviews"

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        zeroth = whole(ZEROTH_ORDER, settings.zeroth, settings, lr=settings.lr, zo=settings.zo)
        self.zeroth: Optimizer = ZEROTH_ORDER[zeroth.name](zeroth, parameters, run)

    @classmethod
    def queries(cls, settings: OptimizerSettings, steps: int) -> dict[str, int]:
        parts = [(ZEROTH_ORDER, whole(ZEROTH_ORDER, settings.zeroth, settings, lr=settings.lr, zo=settings.zo))]
        if "first" in type(settings).model_fields:
            parts.append((FIRST_ORDER, whole(FIRST_ORDER, settings.first, settings, lr=settings.lr)))
        counts = [registry[part.name].queries(part, steps) for registry, part in parts]
        return {kind: sum(count[kind] for count in counts) for kind in KINDS}

    @property
    def drowned(self) -> int:
        """Differences so far that rounding may have made."""
        return self.zeroth.drowned

    def length(self, oracle: Oracle) -> float:
        """Norm of the zeroth-order direction."""
        self.zeroth.steps_done = self.steps_done
        return float(norm(self.zeroth.direction(oracle)))


class FirstAtZONorm(_AtZONorm):
    """A first-order direction, as long as the zeroth-order one: same distance travelled, no noise."""

    grade = Grade.HYBRID
    asks = "1 gradient + 2q value"
    state = ("steps_done", "first", "zeroth")

    class Settings(OptimizerSettings):
        name: Literal["first_at_zo_norm"] = "first_at_zo_norm"
        first: FIRST_ORDER.parts = FIRST_ORDER.default("adam")  # type: ignore[name-defined]
        zeroth: ZEROTH_ORDER.parts = ZEROTH_ORDER.default("r_adazo")  # type: ignore[name-defined]
        zo: ZerothOrder = ZerothOrder()

        @model_validator(mode="after")
        def _belong_together(self) -> FirstAtZONorm.Settings:
            whole(FIRST_ORDER, self.first, self, lr=self.lr)
            whole(ZEROTH_ORDER, self.zeroth, self, lr=self.lr, zo=self.zo)
            return self

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        first = whole(FIRST_ORDER, settings.first, settings, lr=settings.lr)
        self.first: Optimizer = FIRST_ORDER[first.name](first, parameters, run)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        length = self.length(oracle)
        self.first.steps_done = self.steps_done
        direction = self.first.direction(oracle)
        own = float(norm(direction))
        return Lazily(len(direction), lambda i: direction[i] * (length / own if own else 0.0))


class RandomAtZONorm(_AtZONorm):
    """A random direction, as long as the zeroth-order one: the walk without the slope."""

    grade = Grade.ZEROTH
    asks = "2q value"
    state = ("steps_done", "zeroth")

    class Settings(OptimizerSettings):
        name: Literal["random_at_zo_norm"] = "random_at_zo_norm"
        zeroth: ZEROTH_ORDER.parts = ZEROTH_ORDER.default("r_adazo")  # type: ignore[name-defined]
        zo: ZerothOrder = ZerothOrder()

        @model_validator(mode="after")
        def _belong_together(self) -> RandomAtZONorm.Settings:
            whole(ZEROTH_ORDER, self.zeroth, self, lr=self.lr, zo=self.zo)
            return self

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        length = self.length(oracle)
        drawn = noise.gaussian(list(self.parameters), (self.run.seed, NOISE, self.steps_done))
        scale = length / float(norm(drawn))
        return [part.mul_(scale) for part in drawn]
