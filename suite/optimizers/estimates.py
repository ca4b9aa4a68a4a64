"""Zeroth-order estimates of the gradient: only loss values are asked for, or derivatives along a direction.

A central difference along random directions u with root-mean-square 1 per coordinate,
    g = 1 / (2 r q) * sum_i [f(x + r u_i) - f(x - r u_i)] u_i,
is, for u uniform on the sphere of norm sqrt(d), an unbiased estimate of the gradient of the smoothed loss
f_r(x) = E f(x + r v), v uniform in the ball of norm sqrt(d) (Flaxman et al. 2005; Eq. 3 of arXiv 2510.00761, whose
unit-sphere mu is r sqrt(d) here and whose factor d is written out). `suite/oracle/directions.py` says what holds for
the other kinds of directions. The forward difference [f(x + r u_i) - f(x)] / r asks for q + 1 values instead of 2q, and
has a variance that grows with the loss's curvature.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.config import settings
from suite.oracle.base import Displacement, Oracle, Part
from suite.oracle.directions import Direction, Directions, Kind, Lazily, combination
from suite.oracle.state import Stateful

ULPS = 10
"""A difference of fewer units in the last place of the loss (as fp32 computes it) is rounding, not slope."""


class RandomDirections(settings.Settings):
    """Which directions are asked, and how many.

    Attributes:
        samples: random directions per step, q.
        direction: sphere, gaussian, rademacher or low_rank (`suite/oracle/directions.py`).
        rank: columns of the factors of `low_rank`; 1 where it is not given.
        memory: `keep` holds each direction, and the next one, as tensors; `seed` makes them anew, one module at a time,
            so that a step needs the memory of inference. Both give the same numbers.
    """

    samples: int = Field(1, ge=1)
    direction: Kind = Field(Kind.SPHERE, strict=False)
    rank: int | None = Field(None, ge=1)
    memory: Literal["keep", "seed"] = "keep"

    @model_validator(mode="after")
    def _belong_together(self) -> RandomDirections:
        if self.rank is not None and self.direction is not Kind.LOW_RANK:
            raise ValueError(f"rank belongs to direction=low_rank, not to direction={self.direction}")
        if self.memory == "seed" and self.direction is Kind.LOW_RANK:
            raise ValueError("memory=seed belongs to dense directions: low_rank keeps its factors alone, which is less")
        return self


class ZerothOrder(RandomDirections):
    """How the gradient is estimated from loss values.

    Attributes:
        radius: root-mean-square displacement per coordinate, r.
        difference: `central`, two values per direction; `forward`, one, and one at the point itself for all of them.
    """

    radius: float = Field(1e-3, gt=0)
    difference: Literal["central", "forward"] = "central"


class Estimate(Stateful):
    """An estimate of the gradient along q random directions: g = 1/q sum_i slope_i u_i."""

    state = ("drawn",)

    def __init__(self, settings: RandomDirections, parameters: Sequence[Tensor], seed: int) -> None:
        self.settings = settings
        self.directions = Directions(settings.direction, parameters, seed, settings.rank or 1, settings.memory)
        self.drawn = 0
        self._sum: list[Tensor] = []

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        """Slope of the loss along each direction."""
        raise NotImplementedError

    def __call__(self, oracle: Oracle, part: Part = Part.TOTAL) -> Sequence[Tensor]:
        """The estimate, in fp32, shaped like the parameters; the next call may overwrite it."""
        numbers = range(self.drawn, self.drawn + self.settings.samples)
        low_rank = self.settings.direction is Kind.LOW_RANK
        if low_rank or self.settings.memory == "seed":  # nothing large is held, so all are asked as one
            asked = [self.directions(number) for number in numbers]
            slopes = self.slopes(oracle, part, asked)
            weights = [slope * d.factor / len(numbers) for slope, d in zip(slopes, asked, strict=True)]
            found = (combination if low_rank else _added_up)([d.tensors for d in asked], weights)
        else:
            found = self._one_by_one(oracle, part, numbers)
        self.drawn = numbers.stop
        return found

    @torch.no_grad()
    def _one_by_one(self, oracle: Oracle, part: Part, numbers: range) -> Sequence[Tensor]:
        """Each direction is asked and added before the next is taken, so that two are in memory."""
        for number in numbers:
            one = self.directions(number)
            (slope,) = self.slopes(oracle, part, [one])
            weight = slope * one.factor / len(numbers)
            if len(numbers) == 1:
                return Direction(one.tensors, weight)
            if number == numbers.start:
                self._sum = self._sum or [torch.empty_like(t) for t in one.tensors]
                for total, part_ in zip(self._sum, one.tensors, strict=True):
                    torch.mul(part_, weight, out=total)
            else:
                torch._foreach_add_(self._sum, list(one.tensors), alpha=weight)
        return self._sum


def _added_up(directions: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> Lazily:
    if len(directions) == 1:
        return Direction(directions[0], weights[0])

    def make(index: int) -> Tensor:
        total = directions[0][index].mul_(weights[0])
        for tensors, weight in zip(directions[1:], weights[1:], strict=True):
            total.add_(tensors[index], alpha=weight)
        return total

    return Lazily(len(directions[0]), make)


class Differences(Estimate):
    """Slopes by differences of loss values.

    Attributes:
        drowned: differences so far that rounding may have made.
    """

    state = (*Estimate.state, "drowned")

    def __init__(self, settings: ZerothOrder, parameters: Sequence[Tensor], seed: int) -> None:
        super().__init__(settings, parameters, seed)
        self.drowned = 0
        self._clean: float | None = None

    def __call__(self, oracle: Oracle, part: Part = Part.TOTAL) -> Sequence[Tensor]:
        if self.settings.difference == "forward":
            self._clean = float(oracle.values(part, [None]))
        return super().__call__(oracle, part)

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        r = self.settings.radius
        ahead = [Displacement.along(d.tensors, r * d.factor) for d in directions]
        if self._clean is not None:
            found = oracle.values(part, ahead).tolist()
            return [self._difference(value, self._clean) / r for value in found]
        behind = [Displacement.along(d.tensors, -r * d.factor) for d in directions]
        pairs = [place for pair in zip(ahead, behind, strict=True) for place in pair]
        found = oracle.values(part, pairs).tolist()
        return [self._difference(*found[i : i + 2]) / (2 * r) for i in range(0, len(found), 2)]

    def _difference(self, ahead: float, behind: float) -> float:
        ulp = max(abs(ahead), abs(behind)) * torch.finfo(torch.float32).eps
        if abs(ahead - behind) < ULPS * ulp:
            if not self.drowned:
                warnings.warn(
                    f"a zeroth-order difference drowned in rounding: |{ahead:.9g} - {behind:.9g}| is under {ULPS} ulp. "
                    f"Raise optimizer.zo.radius (now {self.settings.radius:g})",
                    stacklevel=2,
                )
            self.drowned += 1
        return ahead - behind


class ForwardMode(Estimate):
    """Slopes by forward-mode differentiation: exact, with no radius, in the memory of one forward pass."""

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        return [d.factor * oracle.directional(part, list(d.tensors)) for d in directions]
