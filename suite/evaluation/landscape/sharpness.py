"""The trace of the loss's Hessian, in two ways: by Hessian-vector products and by differences of losses.

For random signs v, E[v'Hv] = tr H (Hutchinson 1990); signs have less variance than Gaussians, 2 (|H|_F^2 - sum of
H_ii^2). v'Hv is a product of the Hessian with v (two backward passes), or, from losses alone, a second difference
(arXiv 2406.03682):

    v'Hv = [f(w + r v) + f(w - r v) - 2 f(w)] / r^2 + O(r^2).

The radius r must be large enough that the difference is not rounding (of f, some 1e-7), and no larger, since the term
of order r^2 grows with it. So rounding is measured, where r is too small for curvature to show, and r is the smallest
whose differences are `CLEAR` times that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from suite.oracle import noise
from suite.oracle.base import Displacement, Tensors
from tasks.scoring import Estimate, mean

RADII = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""Displacements per coordinate that are tried. MeZO's is 1e-3; beyond the last, a language model is another one."""

STILL = 1e-8
"""A displacement that moves weights by few units in the last place: what f differs by there is rounding."""

CLEAR = 100.0
"""So that rounding is one percent of a second difference."""

PILOTS = 2
"""Directions that the radius is chosen with: the size of v'Hv differs little among them."""

_SIGNS = 0x7ACE
"""Keys these directions apart from everything else that is drawn from a seed."""


class Around(Protocol):
    """f around the weights: see `suite.evaluation.landscape.surface.Surface`."""

    parameters: Tensors

    def values(self, displacements: Sequence[Displacement | None]) -> Tensor: ...

    def curvature(self, direction: Tensors) -> float: ...


def signs(parameters: Tensors, seed: int, index: int) -> list[Tensor]:
    """Direction `index` of a seed: +1 and -1, fp32, a tensor per parameter."""
    made = [torch.empty(p.shape, device=p.device) for p in parameters]
    noise.fill_signs(made, (seed, _SIGNS, index))
    return made


def hutchinson(surface: Around, probes: int, seed: int) -> Estimate:
    """Trace of the Hessian by Hessian-vector products, with its standard error over directions.

    Raises:
        Diverged: a loss or a product is not finite.
    """
    return mean([surface.curvature(signs(surface.parameters, seed, i)) for i in range(probes)])


def by_differences(surface: Around, probes: int, seed: int, radius: float) -> Estimate:
    """The same trace by differences of losses, along the same directions.

    Args:
        radius: displacement per coordinate; `clear_radius` finds one.

    Raises:
        Diverged: a loss is not finite.
    """
    centre = float(surface.values([None])[0])
    return mean([second_difference(surface, seed, i, radius, centre) / radius**2 for i in range(probes)])


def clear_radius(surface: Around, seed: int) -> float | None:
    """The smallest of `RADII` whose second differences are `CLEAR` times rounding; None if none is."""
    centre = float(surface.values([None])[0])

    def size(radius: float) -> float:
        found = [second_difference(surface, seed, i, radius, centre) for i in range(PILOTS)]
        return math.sqrt(math.fsum(d * d for d in found) / PILOTS)

    # Never less than one rounding of f in fp32: at a place as flat as this one, it may round alike on both sides.
    rounding = max(size(STILL), torch.finfo(torch.float32).eps * abs(centre))
    return next((radius for radius in RADII if size(radius) >= CLEAR * rounding), None)


def second_difference(surface: Around, seed: int, index: int, radius: float, centre: float) -> float:
    """f(w + r v) + f(w - r v) - 2 f(w) along direction `index`."""
    direction = signs(surface.parameters, seed, index)
    there, back = surface.values([Displacement.along(direction, s) for s in (radius, -radius)]).tolist()
    return (there - centre) + (back - centre)
