"""A fingerprint of weights that does not depend on how an engine lays them out.

Engines fuse, transpose, split and pad tensors, so bytes cannot be compared. The set of numbers stays the same, and so
does the sum of a function of each number's bits. The sums of tensors add up to that of a checkpoint, and padding with
zeros adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MODULUS = 2**64

SPREAD = 2**16 + 1
"""More than twice the largest 16-bit x, so that x (x + SPREAD) grows with x, and takes no value twice modulo 2^32."""

CHUNK = {"cpu": 2**16, "other": 2**24}
"""Numbers that are summed at a time: on a CPU what fits into a core's cache, elsewhere enough to fill the device."""


def word_sum(tensor: Tensor) -> Tensor:
    """Sum over the numbers of x (x + 65537) modulo 2^32, signed, where x are the number's bits as an integer.

    If a 16-bit number changes, the sum always changes, because no two of them have the same term; for a 32-bit number
    this fails once in two billion times. Two changes cancel equally rarely; in a plain sum, a step up and a step down
    would.

    Returns:
        () int64 on the tensor's device.
    """
    flat = tensor.detach().reshape(-1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    if not flat.numel():
        return total
    words = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}[flat.element_size()])
    for chunk in words.split(CHUNK["cpu" if flat.device.type == "cpu" else "other"]):
        x = chunk.to(torch.int32)
        total += (x * (x + SPREAD)).sum(dtype=torch.int64)
    return total


def combined(sums: Iterable[Tensor]) -> int:
    """The fingerprint of tensors with these sums, modulo 2^64. Each stored tensor must be given once.

    Synchronizes with the device only once.
    """
    values = list(sums)
    return sum(torch.stack(values).tolist()) % MODULUS if values else 0
