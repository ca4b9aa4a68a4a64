"""How far unlearning moved the weights, and in which direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Distance:
    """Distances between two models.

    Attributes:
        l2: norm of the change d over all parameters.
        relative: l2 over the norm of the weights before the change.
        largest: the largest such ratio of any parameter tensor, except tensors of zeros.
        cosine: cosine of d with the change from the same start to a third model; None if either change is zero or
            there is no third model.
        weights: number of parameters, each counted once.
    """

    l2: float
    relative: float
    largest: float
    cosine: float | None
    weights: int


def distance(before: State, after: State, toward: State | None = None) -> Distance:
    """Distances from `before` to `after`, compared with the direction to `toward`. Sums are in float64.

    Args:
        before, after, toward: parameters of the same architecture by name.
    """
    square = start = reference = along = 0.0
    largest, weights = 0.0, 0
    for name, origin in before.items():
        change = after[name].double() - origin.double()
        own, base = float(change.square().sum()), float(origin.double().square().sum())
        square, start, weights = square + own, start + base, weights + origin.numel()
        if base:
            largest = max(largest, math.sqrt(own / base))
        if toward is not None:
            direction = toward[name].double() - origin.double()
            reference += float(direction.square().sum())
            along += float((direction * change).sum())
    norm = math.sqrt(square)
    cosine = along / math.sqrt(square) / math.sqrt(reference) if square and reference else None
    return Distance(norm, norm / math.sqrt(start), largest, cosine, weights)
