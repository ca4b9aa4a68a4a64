"""The trace of the loss's Hessian, in two ways: by Hessian-vector products and by differences of losses.

For random signs v, E[v'Hv] = tr H (Hutchinson 1990); signs have less variance than Gaussians, 2 (|H|_F^2 - sum of
H_ii^2). v'Hv is a product of the Hessian with v (two backward passes), or, from losses alone, a second difference
(arXiv 2406.03682):

    v'Hv = [f(w + r v) + f(w - r v) - 2 f(w)] / r^2 + O(r^2).

The radius r must be large enough for the difference to exceed the rounding error of f (some 1e-7), but no larger, since
the error term grows with r^2. So the rounding error is measured at an r too small for curvature to matter, and the
radius used is the smallest whose differences are `CLEAR` times that error.
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
"""Displacements per coordinate that are tried. MeZO uses 1e-3; beyond the last, the model differs too much."""

STILL = 1e-8
"""A displacement of a few units in the last place of the weights: f changes there only by rounding."""

CLEAR = 100.0
"""How far a second difference must exceed rounding: rounding is then one percent of it."""

PILOTS = 2
"""Number of directions used to choose the radius: the size of v'Hv differs little among directions."""

_SIGNS = 0x7ACE
"""Key that separates these directions from everything else drawn from the same seed."""


class Around(Protocol):
    """The loss f around the weights: see `suite.evaluation.landscape.surface.Surface`."""

    parameters: Tensors

    def values(self, displacements: Sequence[Displacement | None]) -> Tensor: ...

    def curvature(self, direction: Tensors) -> float: ...


def signs(parameters: Tensors, seed: int, index: int) -> list[Tensor]:
    """Direction `index` of a seed: +1 and -1, fp32, a tensor per parameter."""
    direction = [torch.empty(p.shape, device=p.device) for p in parameters]
    noise.fill_signs(direction, (seed, _SIGNS, index))
    return direction


def hutchinson(surface: Around, probes: int, seed: int) -> Estimate:
    """Trace of the Hessian by Hessian-vector products, with its standard error over directions.

    Raises:
        Diverged: a loss or a product is not finite.
    """
    return mean([surface.curvature(signs(surface.parameters, seed, i)) for i in range(probes)])


def by_differences(surface: Around, probes: int, seed: int, radius: float) -> Estimate:
    """Trace of the Hessian by differences of losses, along the same directions.

    Args:
        radius: displacement per coordinate, from `clear_radius`.

    Raises:
        Diverged: a loss is not finite.
    """
    centre = float(surface.values([None])[0])
    return mean([second_difference(surface, seed, i, radius, centre) / radius**2 for i in range(probes)])


def clear_radius(surface: Around, seed: int) -> float | None:
    """The smallest of `RADII` whose second differences are at least `CLEAR` times rounding; None if none is."""
    centre = float(surface.values([None])[0])

    def size(radius: float) -> float:
        differences = [second_difference(surface, seed, i, radius, centre) for i in range(PILOTS)]
        return math.sqrt(math.fsum(d * d for d in differences) / PILOTS)

    # At least one rounding of f in fp32: where f is this flat, it may be rounded in the same way on both sides.
    rounding = max(size(STILL), torch.finfo(torch.float32).eps * abs(centre))
    return next((radius for radius in RADII if size(radius) >= CLEAR * rounding), None)


def second_difference(surface: Around, seed: int, index: int, radius: float, centre: float) -> float:
    """f(w + r v) + f(w - r v) - 2 f(w) along direction `index`."""
    direction = signs(surface.parameters, seed, index)
    forward, backward = surface.values([Displacement.along(direction, s) for s in (radius, -radius)]).tolist()
    return (forward - centre) + (backward - centre)
