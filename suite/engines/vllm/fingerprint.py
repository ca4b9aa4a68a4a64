"""A sum over weights that says whether they arrived, however an engine lays them out.

Engines fuse, transpose, split and pad tensors, so bytes cannot be compared. What stays is which numbers there are: the
sum of a function of each number's bits is the same before and after. Sums of tensors add up to that of a checkpoint,
and padding with zeros adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MODULUS = 2**64

SPREAD = 2**16 + 1
"""Above twice the largest 16-bit x, so that x (x + SPREAD) grows with x, and within 2^32 takes no value twice."""

CHUNK = {"cpu": 2**16, "other": 2**24}
"""Numbers at a time: on a CPU what fits into a core's cache, elsewhere enough to fill the device."""


def word_sum(tensor: Tensor) -> Tensor:
    """Sum over the numbers of x (x + 65537) modulo 2^32, with sign, where x are the number's bits as an integer.

    A number of 16 bits that changes always changes the sum (no two of them have the same term), one of 32 bits does but
    once in two billion times. Two changes cancel as seldom, unlike in a plain sum, where a step up and a step down do.

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
    """The fingerprint of tensors whose sums these are, modulo 2^64: each stored tensor once.

    The device is waited for once.
    """
    found = list(sums)
    return sum(torch.stack(found).tolist()) % MODULUS if found else 0
