"""Averages of iterates: the final weights, or the weights to continue from, are a mean over steps.

The averages are fp32 whatever the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.errors import SpecError
from suite.config.numbers import Count
from suite.optimizers.base import Run
from suite.oracle.base import Oracle
from suite.smoothing.base import Smoothing, SmoothingSettings


class WeightAveraging(Smoothing["WeightAveraging.Settings"]):
    """Exports the mean of the weights after steps start, start + every, ...; the steps themselves are unaffected.

    (WA in arXiv 2502.05374; stochastic weight averaging, arXiv 1803.05407.) The published start is for 125 steps.

    Raises:
        SpecError: the run ends before there are two iterates to average.
    """

    source = "arXiv 1803.05407"
    state = (*Smoothing.state, "count", "total")
    example: ClassVar[Mapping[str, Any]] = {"start": 2, "every": 2}

    class Settings(SmoothingSettings):
        """
        Attributes:
            start: first step, counted from 1, whose weights are part of the mean.
            every: steps between two iterates of the mean.
        """

        name: Literal["wa"] = "wa"
        start: Count = 100
        every: Count = 5

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        if settings.start >= run.steps:
            raise SpecError(
                f"smoothing.start: {settings.start}, but the run has {run.steps} steps, so there would be nothing to "
                "average. Make it smaller than steps"
            )
        super().__init__(oracle, settings, run)
        self.count = 0
        self.total = [torch.zeros_like(p, dtype=torch.float32) for p in oracle.parameters]

    def stepped(self) -> None:
        super().stepped()
        late = self.steps - self.settings.start
        if late >= 0 and late % self.settings.every == 0:
            self.count += 1
            for total, weight in zip(self.total, self.parameters, strict=True):
                total.add_(weight.detach())

    def final_weights(self) -> list[Tensor] | None:
        if not self.count:
            return None
        return [(t / self.count).to(p.dtype) for t, p in zip(self.total, self.parameters, strict=True)]


class ExponentialMovingAverage(Smoothing["ExponentialMovingAverage.Settings"]):
    """Every few steps the weights are set to their moving average, and training continues there (arXiv 2508.12531).

        shadow <- decay * shadow + (1 - decay) * theta;  theta <- shadow

    The shadow is initialized with the weights before the first step. As theta starts from the shadow each time, every
    block of `every` steps moves by (1 - decay) of the optimizer's change. With every = 1 that is a shorter step,
    otherwise Lookahead (arXiv 1907.08610) with slow step 1 - decay, whose published settings are the defaults here.
    """

    source = "arXiv 2508.12531"
    state = (*Smoothing.state, "shadow")
    example: ClassVar[Mapping[str, Any]] = {"every": 2}

    class Settings(SmoothingSettings):
        """
        Attributes:
            decay: weight of the old shadow in the new one.
            every: steps between two averages.
        """

        name: Literal["ema"] = "ema"
        decay: float = Field(0.5, gt=0, lt=1)
        every: Count = 5

    def __init__(self, oracle: Oracle, settings: Settings, run: Run) -> None:
        super().__init__(oracle, settings, run)
        self.shadow = [p.detach().to(torch.float32, copy=True) for p in oracle.parameters]

    def stepped(self) -> None:
        if (self.steps + 1) % self.settings.every == 0:
            with torch.no_grad():
                for shadow, weight in zip(self.shadow, self.parameters, strict=True):
                    shadow.lerp_(weight.float(), 1 - self.settings.decay)
                    weight.copy_(shadow)
        super().stepped()  # the inner oracle sees the weights from which the run continues
