"""Random directions u. All kinds have a root-mean-square of 1 per coordinate, so a radius means the same for each.

| kind | u | E[u u'] | the central difference is unbiased for |
| --- | --- | --- | --- |
| `sphere` | uniform on the sphere of norm sqrt(d) | identity | the loss smoothed over that sphere's ball, any loss |
| `tensor_sphere` | each tensor's part uniform on a sphere of its own | identity | quadratics only |
| `gaussian` | independent standard normals | identity | the loss smoothed by that Gaussian, any loss |
| `rademacher` | independent signs | identity | quadratics only |
| `low_rank` | A B' / sqrt(k) for each matrix, A and B standard normal with k columns | identity | quadratics only |

(Where only quadratics are named, E[u u'] = I makes a quadratic's gradient exact; there is no smoothed loss whose
gradient they estimate for other functions.) Vectors, such as the gains of norms, have no useful rank: `low_rank` draws
them as Gaussians.

A low-rank direction may keep its left factor for several steps (LOZO, arXiv 2410.07698; SubZero, 2410.08989; ZO-Muon,
2602.17155): A then has orthogonal columns of norm sqrt(rows), drawn anew for each subspace, and B alone is drawn for
each direction. Within a subspace the estimate is of the gradient's projection A A' G, in k / rows of its dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum

import torch
from torch import Tensor

from suite.oracle import noise

SUBSPACES = 1 << 41
"""Separates the keys of subspaces from those of directions, which count from zero, and of the controls' noise."""


class Kind(StrEnum):
    SPHERE = "sphere"
    TENSOR_SPHERE = "tensor_sphere"
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

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # no slices: each would be computed
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._make, range(self._count))


Factors = tuple[Tensor, Tensor] | Tensor


class Factored(LazyTensors):
    """Tensors whose matrices are products A B'.

    Attributes:
        factors: per tensor (A, B) of shapes (rows, k) and (columns, k), or the dense tensor.
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        self.factors = factors
        super().__init__(len(factors), lambda i: _dense(factors[i]))


class LowRank(Factored):
    """A direction whose matrices are A B' (the factor 1 / sqrt(k) is in A) and whose other tensors are dense.

    Args:
        left: the factor A of each matrix, with its 1 / sqrt(k), where it is not to be drawn.
    """

    def __init__(
        self, parameters: Sequence[Tensor], rank: int, key: noise.Key, left: Sequence[Tensor | None] | None = None
    ) -> None:
        given = left or [None] * len(parameters)
        shapes: list[tuple[int, ...]] = []
        for p, kept in zip(parameters, given, strict=True):
            if p.dim() != 2:
                shapes.append(tuple(p.shape))
            elif kept is None:
                shapes += [(p.shape[0], rank), (p.shape[1], rank)]
            else:
                shapes.append((p.shape[1], kept.shape[1]))
        drawn = [torch.empty(shape, device=parameters[0].device) for shape in shapes]
        noise.fill(drawn, key)
        parts = iter(drawn)
        factors: list[Factors] = []
        for p, kept in zip(parameters, given, strict=True):
            first = next(parts)
            if p.dim() != 2:
                factors.append(first)
            elif kept is None:
                factors.append((first.div_(math.sqrt(rank)), next(parts)))
            else:
                factors.append((kept, first))
        super().__init__(factors)


def subspace(parameters: Sequence[Tensor], rank: int, key: noise.Key) -> list[Tensor | None]:
    """For each matrix a left factor with k = min(rank, rows) orthogonal columns of norm sqrt(rows / k), each subspace
    equally likely; None for the other tensors."""
    matrices = [p for p in parameters if p.dim() == 2]
    drawn = [torch.empty((p.shape[0], min(rank, p.shape[0])), device=p.device) for p in matrices]
    noise.fill(drawn, key)
    parts = iter(drawn)

    def orthogonal(normal: Tensor) -> Tensor:
        rows, k = normal.shape
        return torch.linalg.qr(normal).Q.mul_(math.sqrt(rows / k)).contiguous()

    return [orthogonal(next(parts)) if p.dim() == 2 else None for p in parameters]


def _dense(factor: Factors) -> Tensor:
    return factor if isinstance(factor, Tensor) else factor[0] @ factor[1].T


def combination(directions: Sequence[Factored], weights: Sequence[float]) -> Factored:
    """sum_i weights[i] * directions[i], each matrix as one product: of the concatenated factors, or of the left factor
    that all share and the sum of the right ones."""

    def combined(index: int) -> Factors:
        factors = [d.factors[index] for d in directions]
        if dense := [factor for factor in factors if isinstance(factor, Tensor)]:
            return _sum(dense, weights)
        pairs = [factor for factor in factors if not isinstance(factor, Tensor)]
        left = pairs[0][0]
        if all(a is left for a, _ in pairs):
            return left, _sum([b for _, b in pairs], weights)
        scaled = [a * w for (a, _), w in zip(pairs, weights, strict=True)]
        return torch.cat(scaled, dim=1), torch.cat([b for _, b in pairs], dim=1)

    return Factored([combined(index) for index in range(len(directions[0]))])


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return sum((t * w for t, w in zip(tensors, weights, strict=True)), torch.zeros_like(tensors[0]))


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
        keep: directions after which a low-rank direction's left factors are drawn anew; 0: with each.

    Attributes:
        size: numbers of a direction.
    """

    def __init__(
        self, kind: Kind, parameters: Sequence[Tensor], seed: int, rank: int = 1, memory: str = "keep", keep: int = 0
    ) -> None:
        self.kind = kind
        self.rank = rank
        self.memory = memory
        self.keep = keep
        self.seed = seed
        self._like = list(parameters)
        self.size = sum(p.numel() for p in parameters)
        self._subspace: tuple[int, list[Tensor | None]] | None = None
        self._buffers: list[list[Tensor]] = []
        self._drawn_ahead: tuple[int, Future[list[float]]] | None = None

    def __call__(self, number: int) -> Direction:
        """Direction `number`. With `keep`, drawing direction `number + 2` overwrites it."""
        if self.kind is Kind.LOW_RANK:
            return Direction(LowRank(self._like, self.rank, (self.seed, number), self._left(number)), 1.0)
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

    def _left(self, number: int) -> list[Tensor | None] | None:
        if not self.keep:
            return None
        which = number // self.keep
        if self._subspace is None or self._subspace[0] != which:
            self._subspace = which, subspace(self._like, self.rank, (self.seed, SUBSPACES, which))
        return self._subspace[1]

    def _draw(self, into: list[Tensor], number: int, first: int = 0, threads: int | None = None) -> list[float]:
        fill = noise.fill_signs if self.kind is Kind.RADEMACHER else noise.fill
        squares = fill(into, (self.seed, number), first, threads)
        if self.kind is not Kind.TENSOR_SPHERE:
            return squares
        for tensor in into:
            tensor.mul_(math.sqrt(tensor.numel()) / float(tensor.norm()))
        return [float(tensor.numel()) for tensor in into]

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
