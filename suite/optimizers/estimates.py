"""Zeroth-order estimates of the gradient, from loss values or from derivatives along a direction alone.

A central difference along random directions u with root-mean-square 1 per coordinate,
    g = 1 / (2 r q) * sum_i [f(x + r u_i) - f(x - r u_i)] u_i,
is, for u uniform on the sphere of norm sqrt(d), an unbiased estimate of the gradient of the smoothed loss
f_r(x) = E f(x + r v), v uniform in the ball of norm sqrt(d) (Flaxman et al. 2005; Eq. 3 of arXiv 2510.00761, whose
unit-sphere mu is r sqrt(d) here and which writes out the factor d). `suite/oracle/directions.py` says what holds for
the other kinds of directions. The forward difference [f(x + r u_i) - f(x)] / r needs q + 1 values instead of 2q, and
its variance grows with the curvature of the loss.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.config import settings
from suite.config.numbers import Count, Few
from suite.oracle.base import Displacement, Oracle, Part
from suite.oracle.directions import Direction, Directions, Factored, Kind, LazyTensors, combination
from suite.oracle.state import Stateful

HELD = 1 << 22
"""Numbers of a step's directions that are held together, 16 MB, so that one query serves them all: of an adapter's few
parameters they share a forward pass (`suite/oracle/replicas.py`)."""
ULPS = 10
"""A difference of fewer units in the last place of the loss (in fp32) may be due to rounding alone."""


class RandomDirections(settings.Settings):
    """The random directions of an estimate: how many, and of which kind.

    Attributes:
        samples: random directions per step, q.
        direction: sphere, tensor_sphere, gaussian, rademacher or low_rank (`suite/oracle/directions.py`).
        rank: columns of the factors of `low_rank`; 1 if it is not given.
        keep: steps for which `low_rank` keeps the subspace of its left factors; it is drawn anew for each direction if
            it is not given.
        memory: `keep` holds a direction, and the next one, as tensors; `seed` draws them again for each module, so that
            a step needs only the memory of inference. Both give the same numbers.
    """

    samples: Few = 1
    direction: Kind = Field(Kind.SPHERE, strict=False)
    rank: Few | None = None
    keep: Count | None = None
    memory: Literal["keep", "seed"] = "keep"

    @model_validator(mode="after")
    def _belong_together(self) -> RandomDirections:
        for name in ("rank", "keep"):
            if getattr(self, name) is not None and self.direction is not Kind.LOW_RANK:
                raise ValueError(f"{name} belongs to direction=low_rank, not to direction={self.direction}")
        if self.memory == "seed" and self.direction is Kind.LOW_RANK:
            raise ValueError("memory=seed belongs to dense directions: low_rank keeps its factors alone, which is less")
        return self


class ZerothOrder(RandomDirections):
    """Settings of a gradient estimate from loss values.

    Attributes:
        radius: root-mean-square displacement per coordinate, r.
        difference: `central`, two values per direction; `forward`, one per direction, and one shared by all at the
            weights themselves.
    """

    radius: float = Field(1e-3, gt=0)
    difference: Literal["central", "forward"] = "central"


D = TypeVar("D", bound=RandomDirections)


class Estimate(Stateful, Generic[D]):
    """An estimate of the gradient along q random directions: g = 1/q sum_i slope_i u_i.

    Attributes:
        norm: L2 norm of the last estimate, as if its directions were orthogonal and as long as they are on average,
            sqrt(d): with few directions among many dimensions they nearly are.
    """

    state = (*Stateful.state, "drawn")

    def __init__(self, settings: D, parameters: Sequence[Tensor], seed: int) -> None:
        self.settings = settings
        keep = (settings.keep or 0) * settings.samples
        self.directions = Directions(settings.direction, parameters, seed, settings.rank or 1, settings.memory, keep)
        self.drawn = 0
        self.norm: float | None = None
        self._sum: list[Tensor] = []

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        """Slope of the loss along each direction."""
        raise NotImplementedError

    def __call__(self, oracle: Oracle, part: Part = Part.TOTAL) -> Sequence[Tensor]:
        """The estimate, in fp32, shaped like the parameters; the next call may overwrite it."""
        numbers = range(self.drawn, self.drawn + self.settings.samples)
        low_rank, few = self.settings.direction is Kind.LOW_RANK, len(numbers) * self.directions.size <= HELD
        if low_rank or few or self.settings.memory == "seed":
            draw = self.directions.held if few and not low_rank else self.directions
            directions = [draw(number) for number in numbers]
            # Where all displacements fit into memory, one query serves them all.
            queries = [directions] if low_rank or few else [[direction] for direction in directions]
            slopes = [slope for some in queries for slope in self.slopes(oracle, part, some)]
            self._note(slopes)
            weights = [slope * d.factor / len(numbers) for slope, d in zip(slopes, directions, strict=True)]
            drawn = [d.tensors for d in directions]
            factored = [tensors for tensors in drawn if isinstance(tensors, Factored)]
            estimate: Sequence[Tensor] = combination(factored, weights) if low_rank else _weighted_sum(drawn, weights)
        else:
            estimate = self._one_by_one(oracle, part, numbers)
        self.drawn = numbers.stop
        return estimate

    def _note(self, slopes: Sequence[float]) -> None:
        self.norm = math.sqrt(math.fsum(s * s for s in slopes) * self.directions.size) / self.settings.samples

    @torch.no_grad()
    def _one_by_one(self, oracle: Oracle, part: Part, numbers: range) -> Sequence[Tensor]:
        """Evaluate and add each direction before the next one is fetched, so that only two are in memory."""
        slopes: list[float] = []
        for number in numbers:
            direction = self.directions(number)
            (slope,) = self.slopes(oracle, part, [direction])
            slopes.append(slope)
            self._note(slopes)
            weight = slope * direction.factor / len(numbers)
            if len(numbers) == 1:
                return Direction(direction.tensors, weight)
            if number == numbers.start:
                self._sum = self._sum or [torch.empty_like(t) for t in direction.tensors]
                for total, tensor in zip(self._sum, direction.tensors, strict=True):
                    torch.mul(tensor, weight, out=total)
            else:
                torch._foreach_add_(self._sum, list(direction.tensors), alpha=weight)
        return self._sum


def _weighted_sum(directions: Sequence[Sequence[Tensor]], weights: Sequence[float]) -> LazyTensors:
    if len(directions) == 1:
        return Direction(directions[0], weights[0])

    def make(index: int) -> Tensor:
        total = directions[0][index] * weights[0]
        for tensors, weight in zip(directions[1:], weights[1:], strict=True):
            total.add_(tensors[index], alpha=weight)
        return total

    return LazyTensors(len(directions[0]), make)


class Differences(Estimate[ZerothOrder]):
    """Slopes by differences of loss values.

    Attributes:
        lost_to_rounding: number of differences so far that may be due to rounding alone.
    """

    state = (*Estimate.state, "lost_to_rounding")

    def __init__(self, settings: ZerothOrder, parameters: Sequence[Tensor], seed: int) -> None:
        super().__init__(settings, parameters, seed)
        self.lost_to_rounding = 0
        self._centre: float | None = None

    def __call__(self, oracle: Oracle, part: Part = Part.TOTAL) -> Sequence[Tensor]:
        if self.settings.difference == "forward":
            self._centre = float(oracle.values(part, [None]))
        return super().__call__(oracle, part)

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        r = self.settings.radius
        ahead = [Displacement.along(d.tensors, r * d.factor) for d in directions]
        if self._centre is not None:
            return [self._difference(value, self._centre) / r for value in oracle.values(part, ahead).tolist()]
        behind = [Displacement.along(d.tensors, -r * d.factor) for d in directions]
        pairs = [displacement for pair in zip(ahead, behind, strict=True) for displacement in pair]
        values = oracle.values(part, pairs).tolist()
        return [self._difference(*values[i : i + 2]) / (2 * r) for i in range(0, len(values), 2)]

    def _difference(self, ahead: float, behind: float) -> float:
        ulp = max(abs(ahead), abs(behind)) * torch.finfo(torch.float32).eps
        if abs(ahead - behind) < ULPS * ulp:
            if not self.lost_to_rounding:
                warnings.warn(
                    f"a zeroth-order difference was lost to rounding: |{ahead:.9g} - {behind:.9g}| < {ULPS} ulp. "
                    f"Raise optimizer.zo.radius (now {self.settings.radius:g})",
                    stacklevel=2,
                )
            self.lost_to_rounding += 1
        return ahead - behind


class ForwardMode(Estimate[RandomDirections]):
    """Slopes by forward-mode differentiation: exact, without a radius, in the memory of one forward pass."""

    def slopes(self, oracle: Oracle, part: Part, directions: Sequence[Direction]) -> list[float]:
        return [d.factor * oracle.directional(part, list(d.tensors)) for d in directions]
