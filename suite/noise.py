"""Gaussian noise by key: the same key gives the same numbers, whoever asks, in whatever order, on however many threads.

A direction in 27 million dimensions costs as much as a third of a forward pass when torch draws it from one generator.
Here each chunk of a tensor has a stream of its own (SFC64, seeded by the key), so that chunks are drawn in parallel, a
tensor can be drawn again by itself, and what a run has drawn is one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 18
"""Numbers per stream. Smaller chunks fit the cache better but fight over the interpreter's lock."""

Key = tuple[int, ...]


def gaussian(like: Sequence[Tensor], key: Key) -> list[Tensor]:
    """Standard normal noise in fp32: a tensor shaped like each of these, on its device."""
    made = [torch.empty(t.shape, device=t.device) for t in like]
    fill(made, key)
    return made


def fill(tensors: Sequence[Tensor], key: Key) -> None:
    """Fill contiguous fp32 tensors with standard normal noise; tensor i has the key (*key, i)."""
    chunks: list[tuple[np.ndarray, Key]] = []
    for index, tensor in enumerate(tensors):
        chunks += _chunks(tensor, (*key, index))
    if len(chunks) == 1:
        _box_muller(*chunks[0])
    elif chunks:
        list(_pool(torch.get_num_threads()).map(lambda chunk: _box_muller(*chunk), chunks))


def fill_one(tensor: Tensor, key: Key, index: int) -> None:
    """What `fill` puts into tensor `index`."""
    for chunk in _chunks(tensor, (*key, index)):
        _box_muller(*chunk)


def signs(tensor: Tensor, key: Key, index: int) -> None:
    """Fill a contiguous fp32 tensor with +1 and -1, each as likely."""
    if tensor.device.type != "cpu":
        tensor.bernoulli_(0.5, generator=_generator(tensor.device, (*key, index))).mul_(2).sub_(1)
        return
    bits = np.random.Generator(np.random.SFC64((*key, index))).integers(0, 256, -(-tensor.numel() // 8), dtype=np.uint8)
    flat = tensor.view(-1).numpy()
    np.multiply(np.unpackbits(bits, count=flat.size), np.float32(2), out=flat)
    flat -= 1


def _chunks(tensor: Tensor, key: Key) -> list[tuple[np.ndarray, Key]]:
    if tensor.device.type != "cpu":
        tensor.normal_(generator=_generator(tensor.device, key))
        return []
    flat = tensor.detach().view(-1).numpy()
    return [(flat[i : i + CHUNK], (*key, i // CHUNK)) for i in range(0, flat.size, CHUNK)]


def _box_muller(out: np.ndarray, key: Key) -> None:
    """Two normals from each 64 random bits: sqrt(-2 log u) cos(2 pi v), and with the sine.

    u has 32 bits, so nothing lies beyond 6.8 standard deviations.
    """
    half = -(-out.size // 2)
    bits = np.random.Generator(np.random.SFC64(key)).integers(0, 2**64 - 1, half, dtype=np.uint64, endpoint=True)
    words = bits.view(np.int32)
    length, angle = words[:half].astype(np.float32), words[half:].astype(np.float32)
    length *= np.float32(2.0**-32)
    length += np.float32(0.5)
    np.maximum(length, np.float32(2.0**-33), out=length)  # never the logarithm of zero
    np.log(length, out=length)
    length *= -2
    np.sqrt(length, out=length)
    angle *= np.float32(2 * math.pi * 2.0**-32)
    np.cos(angle, out=out[:half])
    out[:half] *= length
    rest = out.size - half
    np.sin(angle[:rest], out=out[half:])
    out[half:] *= length[:rest]


def _generator(device: torch.device, key: Key) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")
