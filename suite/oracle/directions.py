"""Random directions u. All kinds have a root-mean-square of 1 per coordinate, so a radius means the same for each.

| kind | u | E[u u'] | the central difference is unbiased for |
| --- | --- | --- | --- |
| `sphere` | uniform on the sphere of norm sqrt(d) | identity | the loss smoothed over that sphere's ball, any loss |
| `gaussian` | independent standard normals | identity | the loss smoothed by that Gaussian, any loss |
| `rademacher` | independent signs | identity | quadratics only |
| `low_rank` | A B' / sqrt(k) for each matrix, A and B standard normal with k columns | identity | quadratics only |

(For the last two E[u u'] = I makes a quadratic's gradient exact; there is no smoothed loss whose gradient they estimate
for other functions.) Vectors, such as the gains of norms, have no useful rank: `low_rank` draws them as Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum

import torch
from torch import Tensor

from suite.oracle import noise


class Kind(StrEnum):
    SPHERE = "sphere"
    GAUSSIAN = "gaussian"
    RADEMACHER = "rademacher"
    LOW_RANK = "low_rank"


class LazyTensors(Sequence[Tensor]):
    """A sequence of tensors that computes each one when it is accessed, and does not store it."""

    def __init__(self, count: int, make: Callable[[int], Tensor]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._make, range(self._count))


class LowRank(LazyTensors):
    """A direction whose matrices are A B' (the factor 1 / sqrt(k) is in A) and whose other tensors are dense.

    Attributes:
        factors: per tensor (A, B) of shapes (rows, k) and (columns, k), or the dense tensor.
    """

    def __init__(self, parameters: Sequence[Tensor], rank: int, key: noise.Key) -> None:
        self.factors: list[tuple[Tensor, Tensor] | Tensor] = []
        shapes: list[tuple[int, ...]] = []
        for p in parameters:
            shapes += [(p.shape[0], rank), (p.shape[1], rank)] if p.dim() == 2 else [tuple(p.shape)]
        drawn = [torch.empty(shape, device=parameters[0].device) for shape in shapes]
        noise.fill(drawn, key)
        parts = iter(drawn)
        for p in parameters:
            first = next(parts)
            self.factors.append((first.div_(math.sqrt(rank)), next(parts)) if p.dim() == 2 else first)
        super().__init__(len(parameters), lambda i: _dense(self.factors[i]))


def _dense(factor: tuple[Tensor, Tensor] | Tensor) -> Tensor:
    return factor if isinstance(factor, Tensor) else factor[0] @ factor[1].T


def combination(directions: Sequence[LowRank], weights: Sequence[float]) -> LazyTensors:
    """sum_i weights[i] * directions[i], each matrix as one product of the concatenated factors."""

    def make(index: int) -> Tensor:
        factors = [d.factors[index] for d in directions]
        if isinstance(factors[0], Tensor):
            return sum((f * w for f, w in zip(factors, weights, strict=True)), torch.zeros_like(factors[0]))
        left = torch.cat([a * w for (a, _), w in zip(factors, weights, strict=True)], dim=1)
        return left @ torch.cat([b for _, b in factors], dim=1).T

    return LazyTensors(len(directions[0]), make)


class Direction(LazyTensors):
    """factor * tensors, where the factor is kept apart to save a pass over the tensors."""

    def __init__(self, tensors: Sequence[Tensor], factor: float) -> None:
        self.tensors = tensors
        self.factor = factor
        super().__init__(len(tensors), lambda i: tensors[i] * factor)


class Directions:
    """The directions of a run by number. Direction n is the same whenever it is drawn, and with either kind of memory.

    Args:
        memory: `keep` holds a direction as tensors, and draws the next one in the background meanwhile; `seed` draws
            each tensor again whenever it is accessed.

    Attributes:
        size: numbers of a direction.
    """

    def __init__(
        self, kind: Kind, parameters: Sequence[Tensor], seed: int, rank: int = 1, memory: str = "keep"
    ) -> None:
        self.kind = kind
        self.rank = rank
        self.memory = memory
        self.seed = seed
        self._like = list(parameters)
        self.size = sum(p.numel() for p in parameters)
        self._buffers: list[list[Tensor]] = []
        self._drawn_ahead: tuple[int, Future[list[float]]] | None = None

    def __call__(self, number: int) -> Direction:
        """Direction `number`. With `keep`, drawing direction `number + 2` overwrites it."""
        if self.kind is Kind.LOW_RANK:
            return Direction(LowRank(self._like, self.rank, (self.seed, number)), 1.0)
        if self.memory == "seed":
            return self._regenerated(number)
        if not self._buffers:
            self._buffers = [[torch.empty(p.shape, device=p.device) for p in self._like] for _ in range(2)]
        if self._drawn_ahead and self._drawn_ahead[0] == number:
            squares = self._drawn_ahead[1].result()
        else:
            if self._drawn_ahead:  # it may still be writing into the same buffer
                self._drawn_ahead[1].result()
            squares = self._draw(self._buffers[number % 2], number)
        self._draw_ahead(number + 1)
        return Direction(self._buffers[number % 2], self._factor(squares))

    def held(self, number: int) -> Direction:
        """Direction `number` in memory of its own, which nothing overwrites."""
        direction = self(number)
        return Direction([tensor.clone() for tensor in direction.tensors], direction.factor)

    def _draw(self, into: list[Tensor], number: int, first: int = 0, threads: int | None = None) -> list[float]:
        fill = noise.fill_signs if self.kind is Kind.RADEMACHER else noise.fill
        return fill(into, (self.seed, number), first, threads)

    def _draw_ahead(self, number: int) -> None:
        """Draw in the background on a CPU: forward passes leave cores idle at times. On a GPU drawing is cheap."""
        if self._like[0].device.type == "cpu":
            self._drawn_ahead = (number, _AHEAD.submit(self._draw, self._buffers[number % 2], number, 0, 1))

    def _factor(self, squares: Sequence[float]) -> float:
        return math.sqrt(self.size / math.fsum(squares)) if self.kind is Kind.SPHERE else 1.0

    def _regenerated(self, number: int) -> Direction:
        def make(index: int) -> Tensor:
            tensor = torch.empty_like(self._like[index], dtype=torch.float32)
            self._draw([tensor], number, index)
            return tensor

        squares: list[float] = []
        if self.kind is Kind.SPHERE:  # the norm needs a pass of its own
            for index, like in enumerate(self._like):
                squares += self._draw([torch.empty_like(like, dtype=torch.float32)], number, index)
        return Direction(LazyTensors(len(self._like), make), self._factor(squares))


_AHEAD = ThreadPoolExecutor(1, thread_name_prefix="directions")
