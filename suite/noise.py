"""Random numbers by key: one key gives the same numbers, whoever asks, in whatever order, on any number of threads.

A direction in 27 million dimensions costs as much as a forward pass when torch draws it from one generator. Here each
chunk of a tensor has a stream of its own (SFC64, seeded by the key), so chunks are drawn in parallel or ahead of time,
a tensor can be drawn again by itself, and what a run has drawn so far is one number.
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


def fill(tensors: Sequence[Tensor], key: Key, first: int = 0, threads: int | None = None) -> list[float]:
    """Fill contiguous fp32 tensors with standard normal noise; tensor i has the key (*key, first + i).

    Args:
        threads: by default as many as torch uses.

    Returns:
        Sums of squares, in the order of the tensors' streams; their total is the squared norm.
    """
    chunks: list[tuple[np.ndarray, Key]] = []
    for index, tensor in enumerate(tensors, first):
        if tensor.device.type == "cpu":
            chunks += _chunks(tensor, (*key, index))
        else:
            tensor.normal_(generator=_generator(tensor.device, (*key, index)))
    if not chunks:  # one wait for the device, not one per tensor
        return torch.stack(torch._foreach_norm(list(tensors))).double().square().tolist()
    threads = torch.get_num_threads() if threads is None else threads
    if threads == 1 or len(chunks) == 1:
        return [_box_muller(*chunk) for chunk in chunks]
    return list(_pool(threads).map(lambda chunk: _box_muller(*chunk), chunks))


def fill_signs(tensors: Sequence[Tensor], key: Key, first: int = 0, threads: int | None = None) -> list[float]:
    """Fill contiguous fp32 tensors with +1 and -1, each as likely. Keys, arguments and answer as in `fill`."""
    for index, tensor in enumerate(tensors, first):
        if tensor.device.type == "cpu":
            _signs(tensor.view(-1).numpy(), (*key, index))
        else:
            tensor.bernoulli_(0.5, generator=_generator(tensor.device, (*key, index))).mul_(2).sub_(1)
    return [float(tensor.numel()) for tensor in tensors]


def _chunks(tensor: Tensor, key: Key) -> list[tuple[np.ndarray, Key]]:
    flat = tensor.detach().view(-1).numpy()
    return [(flat[i : i + CHUNK], (*key, i // CHUNK)) for i in range(0, flat.size, CHUNK)]


def _box_muller(out: np.ndarray, key: Key) -> float:
    """Two normals from each 64 random bits: sqrt(-2 log u) cos(2 pi v), and with the sine. The sum of their squares.

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
    square = float(length.sum())
    np.sqrt(length, out=length)
    angle *= np.float32(2 * math.pi * 2.0**-32)
    np.cos(angle, out=out[:half])
    out[:half] *= length
    rest = out.size - half
    np.sin(angle[:rest], out=out[half:])
    out[half:] *= length[:rest]
    return square if rest == half else square - float((length[rest] * math.sin(angle[rest])) ** 2)


def _signs(out: np.ndarray, key: Key) -> None:
    bits = np.random.Generator(np.random.SFC64(key)).integers(0, 256, -(-out.size // 8), dtype=np.uint8)
    np.multiply(np.unpackbits(bits, count=out.size), np.float32(2), out=out)
    out -= 1


def _generator(device: torch.device, key: Key) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")
