"""Matched controls: does the grade make forgetting robust, or the noise and the length of the steps?

Each copies one property of a zeroth-order optimizer and leaves out the rest. The property is measured during the run
with the loss values that the zeroth-order optimizer would query, so these values are counted too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor

from suite.config.numbers import Count
from suite.optimizers.base import KINDS, Optimizer, OptimizerSettings, Run
from suite.optimizers.estimates import Differences
from suite.optimizers.parts import FIRST_ORDER, ZEROTH_ORDER, FirstPart, Parts, ZerothPart, standalone_settings
from suite.optimizers.zeroth_order import ZerothOrderOptimizer, ZerothOrderSettings
from suite.oracle import noise
from suite.oracle.base import Displacement, Grade, Oracle, Part, Wrapping, norm
from suite.oracle.directions import Direction, LazyTensors

NOISE = 1 << 40
"""Separates the keys of the controls' noise from those of the estimators' directions, which count from zero."""


class _Noisy(Wrapping):
    """An oracle that adds Gaussian noise to the gradients of the oracle inside it."""

    def __init__(self, oracle: Oracle, deviation: float, key: noise.Key) -> None:
        super().__init__(oracle)
        self.deviation, self.key = deviation, key

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        gradient = self.oracle.gradient(part, at)
        drawn = noise.gaussian(gradient, self.key)
        return [g.add(z.to(g.dtype), alpha=self.deviation) for g, z in zip(gradient, drawn, strict=True)]


class FirstWithZONoise(Optimizer["FirstWithZONoise.Settings"]):
    """A first-order optimizer whose gradient carries the noise of a zeroth-order estimate: same variance, no smoothing.

    An estimate from q directions has the variance (E[slope^2] - |g|^2 / d) / q in each coordinate, whatever the
    direction's kind (exactly for the Gaussian up to g_i^2, on average over coordinates for all). E[slope^2] is the mean
    over the slopes measured so far in the run.
    """

    grade = Grade.HYBRID
    control = True
    source = "control: arXiv 2510.00761's reviews"
    queries_per_step = "1 gradient + 2q value every k"
    example: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "every": 2}
    state = (*Optimizer.state, "first", "measure", "squares", "slopes")

    class Settings(ZerothOrderSettings):
        """every: steps between two measurements of the variance. zo: settings of the estimate that is imitated."""

        name: Literal["first_with_zo_noise"] = "first_with_zo_noise"
        first: FirstPart = FIRST_ORDER.default("adam")
        every: Count = 1

        @model_validator(mode="after")
        def _belong_together(self) -> Self:
            self.first_settings()
            return self

        def first_settings(self) -> OptimizerSettings:
            return standalone_settings(FIRST_ORDER, self.first, self, lr=self.lr)

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        first = settings.first_settings()
        self.first: Optimizer[Any] = FIRST_ORDER[first.name](first, parameters, run)
        self.measure = _Slopes(settings.zo, parameters, run.seed)
        self.squares, self.slopes = 0.0, 0

    @property
    def lost_to_rounding(self) -> int:
        """Number of differences so far that may be due to rounding alone."""
        return self.measure.lost_to_rounding

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
    """Differences that keep the slopes of the last estimate."""

    last: Sequence[float] = ()

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        slopes = super().slopes(oracle, part, directions)
        self.last = [*self.last, *slopes]
        return slopes

    def __call__(self, oracle: Oracle, part: Part = Part.TOTAL) -> Sequence[Tensor]:
        self.last = []
        return super().__call__(oracle, part)


class _LengthSettings(ZerothOrderSettings):
    """zeroth: the zeroth-order optimizer, the length of whose steps is taken."""

    zeroth: ZerothPart = ZEROTH_ORDER.default("r_adazo")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        self.parts()
        return self

    def zeroth_settings(self) -> OptimizerSettings:
        return standalone_settings(ZEROTH_ORDER, self.zeroth, self, lr=self.lr, zo=self.zo)

    def parts(self) -> list[tuple[Parts[Any], OptimizerSettings]]:
        """The registries and the settings of all optimizers whose directions are taken."""
        return [(ZEROTH_ORDER, self.zeroth_settings())]


L = TypeVar("L", bound=_LengthSettings)


class _AtZONorm(Optimizer[L]):
    """Steps as long as those of a zeroth-order optimizer. `lr` is the step size of that optimizer."""

    control = True
    source = "control: arXiv 2510.00761's reviews"
    state = (*Optimizer.state, "zeroth")

    def __init__(self, settings: L, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        zeroth = settings.zeroth_settings()
        self.zeroth: ZerothOrderOptimizer[Any] = ZEROTH_ORDER[zeroth.name](zeroth, parameters, run)

    @classmethod
    def queries(cls, settings: L, steps: int) -> dict[str, int]:
        counts = [registry[part.name].queries(part, steps) for registry, part in settings.parts()]
        return {kind: sum(count[kind] for count in counts) for kind in KINDS}

    @property
    def lost_to_rounding(self) -> int:
        """Number of differences so far that may be due to rounding alone."""
        return self.zeroth.lost_to_rounding

    def length(self, oracle: Oracle) -> float:
        """Norm of the zeroth-order direction."""
        self.zeroth.steps_done = self.steps_done
        return float(norm(self.zeroth.direction(oracle)))


class FirstAtZONorm(_AtZONorm["FirstAtZONorm.Settings"]):
    """A first-order direction scaled to the norm of the zeroth-order one: same distance travelled, no noise."""

    grade = Grade.HYBRID
    queries_per_step = "1 gradient + 2q value"
    state = (*_AtZONorm.state, "first")

    class Settings(_LengthSettings):
        name: Literal["first_at_zo_norm"] = "first_at_zo_norm"
        first: FirstPart = FIRST_ORDER.default("adam")

        def first_settings(self) -> OptimizerSettings:
            return standalone_settings(FIRST_ORDER, self.first, self, lr=self.lr)

        def parts(self) -> list[tuple[Parts[Any], OptimizerSettings]]:
            return [(FIRST_ORDER, self.first_settings()), *super().parts()]

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        first = settings.first_settings()
        self.first: Optimizer[Any] = FIRST_ORDER[first.name](first, parameters, run)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        length = self.length(oracle)
        self.first.steps_done = self.steps_done
        direction = self.first.direction(oracle)
        own = float(norm(direction))
        return LazyTensors(len(direction), lambda i: direction[i] * (length / own if own else 0.0))


class RandomAtZONorm(_AtZONorm["RandomAtZONorm.Settings"]):
    """A random direction scaled to the norm of the zeroth-order one: the same random walk, but without the slope."""

    grade = Grade.ZEROTH
    queries_per_step = "2q value"

    class Settings(_LengthSettings):
        name: Literal["random_at_zo_norm"] = "random_at_zo_norm"

    @torch.no_grad()
    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        length = self.length(oracle)
        drawn = noise.gaussian(list(self.parameters), (self.run.seed, NOISE, self.steps_done))
        scale = length / float(norm(drawn))
        return [part.mul_(scale) for part in drawn]
