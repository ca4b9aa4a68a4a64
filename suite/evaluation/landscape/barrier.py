"""Linear mode connectivity: how far the loss rises above its chord on the straight line between two models.

Without a barrier, both models lie in one basin, and the straight line leads from what one knows to what the other knows
(Frankle et al. 2020, arXiv 1912.05671; here the baseline is the chord between both ends, as in arXiv 2110.06296).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suite.evaluation.landscape.surface import Texts
from suite.models.checkpoints import State
from tasks.scoring import Estimate, mean


@dataclass(frozen=True)
class Line:
    """Losses on the line from one model to another.

    Attributes:
        shares: share of the other model at each point, from 0 to 1: (points,).
        losses: loss of each text at each point: float64, (points, texts).
    """

    shares: Tensor
    losses: Tensor

    @property
    def curve(self) -> list[float]:
        """Mean loss at each point, in nats."""
        return self.losses.mean(1).tolist()

    @property
    def barrier(self) -> Estimate:
        return barrier(self.shares, self.losses)


def line(model: torch.nn.Module, one: State, other: State, texts: Sequence[Texts], points: int) -> list[Line]:
    """Losses of several sets of texts at `points` evenly spaced points of the line, both ends included.

    The weights at t are (1 - t) one + t other in fp32, rounded to the model's dtype, as in
    `suite.models.checkpoints.interpolated`.

    Args:
        model: its weights are overwritten.
        one, other: both models' parameters by name.
    """
    shares = torch.linspace(0, 1, points, dtype=torch.float64)
    by_point = []
    for share in shares.tolist():
        place(model, one, other, share)
        by_point.append([texts_set.losses(model) for texts_set in texts])
    return [Line(shares, torch.stack(losses)) for losses in zip(*by_point, strict=True)]


@torch.no_grad()
def place(model: torch.nn.Module, one: State, other: State, share: float) -> None:
    """Write the weights at one point of the line into the model."""
    for name, parameter in model.named_parameters():
        start, end = (side[name].to(parameter.device).float() for side in (one, other))
        parameter.copy_(start.lerp(end, share))


def barrier(shares: Tensor, losses: Tensor) -> Estimate:
    """max over t of f(t) - [(1 - t) f(0) + t f(1)], with its standard error over texts at that t; never below 0.

    Args:
        shares: (points,), from 0 to 1. losses: (points, texts).
    """
    count = losses.shape[1]
    above = losses - torch.lerp(losses[0], losses[-1], shares.unsqueeze(1))
    if not bool(above.isfinite().all()):
        return Estimate.null("the loss is not finite", count)
    highest = above[above.mean(1).argmax()]
    return mean(highest.tolist())
