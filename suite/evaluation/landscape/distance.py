"""How far unlearning went through the space of weights, and where to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Distance:
    """What lies between two models.

    Attributes:
        l2: norm of the change d over all parameters.
        relative: l2 over the norm of the weights that it started from.
        largest: that ratio for the parameter tensor for which it is largest; tensors of zeros apart.
        cosine: of d with the way from the same start to a third model; None where either is no way at all, or where
            there is no third model.
        weights: parameters, each counted once.
    """

    l2: float
    relative: float
    largest: float
    cosine: float | None
    weights: int


def distance(before: State, after: State, toward: State | None = None) -> Distance:
    """From `before` to `after`, beside the way to `toward`. Sums in float64.

    Args:
        before, after, toward: parameters of the same architecture by name.
    """
    square = start = way = along = 0.0
    largest, weights = 0.0, 0
    for name, origin in before.items():
        change = after[name].double() - origin.double()
        own, base = float(change.square().sum()), float(origin.double().square().sum())
        square, start, weights = square + own, start + base, weights + origin.numel()
        if base:
            largest = max(largest, math.sqrt(own / base))
        if toward is not None:
            direction = toward[name].double() - origin.double()
            way += float(direction.square().sum())
            along += float((direction * change).sum())
    norm = math.sqrt(square)
    cosine = along / math.sqrt(square) / math.sqrt(way) if square and way else None
    return Distance(norm, norm / math.sqrt(start), largest, cosine, weights)
