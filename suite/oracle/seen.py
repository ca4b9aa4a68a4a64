"""What answering the queries of a step shows in passing, at no cost: losses, and the norm of a gradient."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from suite.oracle.base import Part

MOST = 1024
"""Losses that are remembered where nobody takes them."""


class Seen:
    """Losses and gradients since they were last taken. Tensors stay on their device, so noting one waits for nothing.

    Attributes:
        gradient_norm: L2 norm of the last gradient; None: there was none.
    """

    def __init__(self) -> None:
        self._losses: dict[Part, deque[Tensor]] = {part: deque(maxlen=MOST) for part in (Part.FORGET, Part.RETAIN)}
        self.gradient_norm: Tensor | None = None

    def loss(self, part: Part, loss: Tensor) -> None:
        if not torch._C._functorch.is_functorch_wrapped_tensor(loss):  # inside a derivative along a direction
            self._losses[part].append(loss.detach())

    def take(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The means of the forget and of the retain losses, and the gradient's norm; then nothing is remembered."""
        means = [torch.stack(list(losses)).mean() if losses else None for losses in self._losses.values()]
        norm, self.gradient_norm = self.gradient_norm, None
        for losses in self._losses.values():
            losses.clear()
        return means[0], means[1], norm
