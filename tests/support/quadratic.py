"""A quadratic loss that answers every query of an oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from suite.oracle.base import CurvatureSample, Displacement, Part


class Quadratic:
    """f(x) = x'Ax/2 + b'x as an oracle: everything is known in closed form. Values in float64, weights in fp32."""

    def __init__(self, size: int = 20, seed: int = 0, f: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        draw = torch.Generator().manual_seed(seed)
        root = torch.randn(size, size, generator=draw, dtype=torch.float64)
        self.a = root @ root.T / size
        self.b = torch.randn(size, generator=draw, dtype=torch.float64)
        self.f = f or (lambda x: x @ self.a @ x / 2 + self.b @ x)
        half = size // 2
        start = torch.randn(size, generator=draw)
        self.parameters = [start[:half].clone().view(2, -1), start[half:].clone()]
        self.bits: list[int] = []

    @property
    def x(self) -> torch.Tensor:
        return torch.cat([p.flatten() for p in self.parameters]).double()

    def split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        half = self.parameters[0].numel()
        return [flat[:half].view(2, -1).float(), flat[half:].float()]

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> torch.Tensor:
        here, places = self.x, []
        for displacement in displacements:
            x = here.clone()
            for scale, way in displacement.terms if displacement else ():
                x += scale * torch.cat([w.flatten() for w in way]).double()
            places.append(self.f(x))
        return torch.stack(places)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[torch.Tensor]:
        return self.split(self.a @ self.x + self.b)

    def curvature_sample(self) -> CurvatureSample:
        return CurvatureSample(self.split(self.a.diagonal().sqrt()), 1)

    def directional(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> float:
        slope = self.a @ self.x + self.b
        return float(slope @ torch.cat([d.flatten() for d in direction]).double())

    def hvp(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> list[torch.Tensor]:
        return self.split(self.a @ torch.cat([d.flatten() for d in direction]).double())

    def compressed(self, bits: int) -> None:
        self.bits.append(bits)

    def stepped(self) -> None:
        pass
