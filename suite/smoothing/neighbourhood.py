"""Gaussian draws around the weights that stay the same for every query of a step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from suite.oracle import noise


class Neighbourhood:
    """Standard normal noise by step and number. All queries of a step see the same draws, so that differences of
    smoothed losses are differences of one function. A draw is repeated on each use, so that only one is in memory.

    Args:
        seed: the run's seed.
        name: name of the smoothing that draws; each has its own stream.
    """

    def __init__(self, parameters: Sequence[Tensor], seed: int, name: str) -> None:
        self._parameters = parameters
        self._key = (seed, zlib.crc32(name.encode()))
        self._noise: list[Tensor] = []

    def __call__(self, step: int, index: int = 0) -> list[Tensor]:
        """fp32, shaped like the parameters; overwritten by the next call."""
        if not self._noise:
            self._noise = [torch.empty(p.shape, device=p.device) for p in self._parameters]
        noise.fill(self._noise, (*self._key, step, index))
        return self._noise
