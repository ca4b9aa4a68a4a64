"""Random numbers by key: a key always gives the same numbers, in whatever order and on any number of threads.

A direction in 27 million dimensions costs as much as a forward pass when torch draws it from one generator. Here the
random bits are AES in counter mode (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), which the
processor computes at many bytes a cycle and which can start anywhere. So chunks can be drawn in parallel or ahead of
time, a tensor can be drawn again by itself, and the state of a run's generator is one number.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

CHUNK = 1 << 18
"""Numbers drawn at a time. With fewer, threads spend more time waiting for the GIL than drawing."""

Key = tuple[int, ...]


def gaussian(like: Sequence[Tensor], key: Key) -> list[Tensor]:
    """Standard normal noise in fp32: one tensor for each of `like`, of its shape and on its device."""
    drawn = [torch.empty(t.shape, device=t.device) for t in like]
    fill(drawn, key)
    return drawn


def fill(tensors: Sequence[Tensor], key: Key, first: int = 0, threads: int | None = None) -> list[float]:
    """Fill contiguous fp32 tensors with standard normal noise; tensor i has the key (*key, first + i).

    Args:
        threads: number of threads; by default as many as torch uses.

    Returns:
        Sums of squares, in the order of the tensors' streams; their total is the squared norm.
    """
    chunks: list[tuple[np.ndarray, bytes, int]] = []
    for index, tensor in enumerate(tensors, first):
        if tensor.device.type == "cpu":
            flat, secret = tensor.detach().view(-1).numpy(), _secret((*key, index))
            chunks += [(flat[i : i + CHUNK], secret, i) for i in range(0, flat.size, CHUNK)]
        else:
            tensor.normal_(generator=_generator(tensor.device, (*key, index)))
    if not chunks:  # one synchronization with the device, not one per tensor
        return torch.stack(torch._foreach_norm(list(tensors))).double().square().tolist()
    threads = torch.get_num_threads() if threads is None else threads
    if threads == 1 or len(chunks) == 1:
        return [_box_muller(*chunk) for chunk in chunks]
    return list(_pool(threads).map(lambda chunk: _box_muller(*chunk), chunks))


def fill_signs(tensors: Sequence[Tensor], key: Key, first: int = 0, threads: int | None = None) -> list[float]:
    """Fill contiguous fp32 tensors with +1 and -1, equally likely. Keys, arguments and return value as in `fill`."""
    for index, tensor in enumerate(tensors, first):
        if tensor.device.type == "cpu":
            _signs(tensor.view(-1).numpy(), (*key, index))
        else:
            tensor.bernoulli_(0.5, generator=_generator(tensor.device, (*key, index))).mul_(2).sub_(1)
    return [float(tensor.numel()) for tensor in tensors]


def _box_muller(out: np.ndarray, secret: bytes, start: int) -> float:
    """Two normals from each 64 random bits, and the sum of their squares: r cos a and r sin a, with r^2 = -2 log u.

    u has 31 bits, so nothing lies beyond 6.6 standard deviations. Sine and cosine follow from t = tan(a / 2) without
    another transcendental function: with w = 2 / (1 + t^2), cos a = w - 1 and sin a = t w.
    """
    half = -(-out.size // 2)
    words = _bits(_WORK.words[: 2 * half], secret, start)
    square, angle, wave = (array[:half] for array in (_WORK.square, _WORK.angle, _WORK.wave))
    np.copyto(angle, words[half:], casting="unsafe")
    angle *= np.float32(math.pi * 2.0**-32)
    np.bitwise_or(words[:half], 1, out=words[:half])  # never the logarithm of zero
    np.copyto(square, words[:half], casting="unsafe")
    np.abs(square, out=square)
    np.log(square, out=square)
    square *= -2
    square += np.float32(62 * math.log(2))
    total = float(np.sum(square))
    radius, tangent = np.sqrt(square, out=square), np.tan(angle, out=angle)
    np.multiply(tangent, tangent, out=wave)
    wave += 1
    np.divide(2, wave, out=wave)
    rest = out.size - half
    tangent *= wave
    np.multiply(tangent[:rest], radius[:rest], out=out[half:])
    wave -= 1
    np.multiply(wave, radius, out=out[:half])
    return total if rest == half else total - float(tangent[rest] * radius[rest]) ** 2


def _signs(out: np.ndarray, key: Key) -> None:
    bits = _bits(np.empty(-(-out.size // 32), np.int32), _secret(key), 0).view(np.uint8)
    np.multiply(np.unpackbits(bits, count=out.size), np.float32(2), out=out)
    out -= 1


def _secret(key: Key) -> bytes:
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()


def _bits(words: np.ndarray, secret: bytes, start: int) -> np.ndarray:
    """Fill `words` with the secret's stream from word `start` on, a multiple of the four words of a block."""
    stream = Cipher(algorithms.AES(secret), modes.CTR((start // 4).to_bytes(16, "big"))).encryptor()
    out = words.data.cast("B")
    for i in range(0, len(out), len(_ZEROS)):
        stream.update_into(_ZEROS[: len(out) - i], out[i:])
    return words


class _Workspace(threading.local):
    """Scratch arrays of one thread: page faults of fresh memory would cost more than the computation."""

    def __init__(self) -> None:
        self.words = np.empty(CHUNK, np.int32)
        self.square, self.angle, self.wave = (np.empty(CHUNK // 2, np.float32) for _ in range(3))


_WORK = _Workspace()
_ZEROS = memoryview(bytes(4 * CHUNK))


def _generator(device: torch.device, key: Key) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")
