"""Seconds, and ratios of them within one run: what every benchmark here is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int) -> float:
    """Median over pairs, one after the other, so that a machine that slows down slows both."""
    one(), other()
    return statistics.median(seconds(one) / seconds(other) for _ in range(repeats))
