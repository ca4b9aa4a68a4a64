"""An oracle of functions of one vector: it answers every query, by automatic differentiation in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from suite.oracle.base import CurvatureSample, Displacement, Part, Queries
from suite.smoothing import Smoothing

Function = Callable[[torch.Tensor], torch.Tensor]
SIZE = 8


def matrix(seed: int, size: int = SIZE) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size


def vector(seed: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(seed: int) -> Function:
    a, b = matrix(seed), vector(seed + 100)
    return lambda x: x @ a @ x / 2 + b @ x


def quartic(seed: int) -> Function:
    """A quadratic with a fourth-order term, so that its Hessian changes from place to place."""
    a, rest = matrix(seed + 200), quadratic(seed)
    return lambda x: rest(x) + (x @ a @ x) ** 2 / 40


class Functions:
    """An oracle of functions of one vector, differentiated by torch in float64. Weights, gradients in `dtype`."""

    def __init__(
        self, forget: Function | None = None, retain: Function | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        forget, retain = forget or quartic(1), retain or quartic(2)
        self.f: dict[Part, Function] = {
            Part.FORGET: forget,
            Part.RETAIN: retain,
            Part.RELEARN: quartic(3),
            Part.TOTAL: lambda x: forget(x) + retain(x),
        }
        start = vector(7)
        self.parameters = [start[: SIZE // 2].view(2, -1).to(dtype), start[SIZE // 2 :].to(dtype)]
        self.queries = Queries()
        self.evaluated: list[tuple[Part, torch.Tensor]] = []
        self.steps = 0

    @property
    def x(self) -> torch.Tensor:
        return flat(self.parameters)

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        made = [x[: SIZE // 2].view(2, -1), x[SIZE // 2 :]]
        return [m.to(p.dtype) for m, p in zip(made, self.parameters, strict=True)]

    def at(self, part: Part, displacement: Displacement | None) -> torch.Tensor:
        x = self.x.clone()
        for scale, way in displacement.terms if displacement else ():
            x += scale * flat(way)
        self.evaluated.append((part, x))
        return x

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> torch.Tensor:
        self.queries.value += len(displacements)
        return torch.stack([self.f[part](self.at(part, d)) for d in displacements])

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[torch.Tensor]:
        self.queries.gradient += 1
        x = self.at(part, at).requires_grad_()
        (gradient,) = torch.autograd.grad(self.f[part](x), x)
        x.requires_grad_(False)
        return self.split(gradient)

    def directional(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> float:
        self.queries.directional += 1
        return float(torch.func.jvp(self.f[part], (self.at(part, at),), (flat(direction),))[1])

    def curvature_sample(self) -> CurvatureSample:
        self.queries.curvature += 1
        return CurvatureSample(self.split(vector(9)), 1)

    def hvp(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> list[torch.Tensor]:
        self.queries.curvature += 1
        return self.split(torch.func.jvp(torch.func.grad(self.f[part]), (self.at(part, at),), (flat(direction),))[1])

    def compressed(self, bits: int) -> None:
        self.queries.bits.add(bits)

    def stepped(self) -> None:
        self.steps += 1


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]).double()


def walk(smoothed: Smoothing, steps: int) -> None:
    """Steps that use gradients and differences of values, so that what either changes shows."""
    way = [torch.ones_like(p) for p in smoothed.parameters]
    for _ in range(steps):
        gradient = smoothed.gradient()
        ahead, behind = smoothed.values(
            Part.TOTAL, [Displacement.along(way, 0.01), Displacement.along(way, -0.01)]
        ).tolist()
        with torch.no_grad():
            for p, g in zip(smoothed.parameters, gradient, strict=True):
                p.sub_(0.02 * g.to(p.dtype) + 0.001 * (ahead - behind))
        smoothed.stepped()
