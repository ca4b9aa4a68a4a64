"""The compressor Q(m; b): a direction in b bits per coordinate.

arXiv 2510.00761 does not state the scale of its b-bit directions. Ours is the usual one: a symmetric integer grid that
ends at the largest magnitude.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["tensor", "channel"]
"""Which coordinates share a scale: a whole tensor, or an output channel."""


def size(x: Tensor, scale: Scale, order: float) -> Tensor:
    """Norm (inf: largest |x|; 1: sum of |x|) of a tensor or of each of its output channels, broadcasting to x.

    An output channel is one index of the first dimension, e.g. a row of a matrix; a vector is one channel.
    """
    within = tuple(range(1, x.ndim)) if scale == "channel" and x.ndim > 1 else None
    return torch.linalg.vector_norm(x, order, within, keepdim=True)


def quantize(x: Tensor, bits: int, scale: Scale = "tensor") -> Tensor:
    """Q(x; b), in x's shape and dtype. An exact zero stays zero.

    With b = 1 it is sign(x), without a scale. Otherwise the nearest point (ties to the even one) of the grid
    s {-L, ..., L} with L = 2^(b-1) - 1 levels per side and s = max|x| / L: at most 2^b - 1 values per scale.

    Args:
        bits: from 1 to 8.
    """
    if bits == 1:
        return x.sign()
    wide = x.float()
    step = size(wide, scale, math.inf).div_(2 ** (bits - 1) - 1)
    return wide.div(torch.where(step > 0, step, 1.0)).round_().mul_(step).to(x.dtype)


def scaled_sign(x: Tensor, scale: Scale = "tensor") -> Tensor:
    """mean|x| sign(x), the 1-bit compressor of EF-signSGD (arXiv 1901.09847, Alg. 1)."""
    total = size(x.float(), scale, 1)
    return x.sign().mul_(total.mul_(total.numel() / x.numel()).to(x.dtype))
