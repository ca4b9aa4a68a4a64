"""Smoothings, by name, of an oracle of functions, and their comparison with closed forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from suite.optimizers import Run
from suite.smoothing import SMOOTHINGS, Smoothing
from suite.testing.functions import Function, flat


def smooth(name: str, oracle: object, steps: int = 6, seed: int = 0, **changes: object) -> Smoothing:
    kind = SMOOTHINGS[name]
    return kind(oracle, kind.Settings(**changes), Run(steps, seed))


def grad(f: Function, x: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(f)(x)


def close(one: Sequence[torch.Tensor], expected: torch.Tensor, rtol: float = 1e-5) -> None:
    """Relative to the whole vector."""
    assert float((flat(one) - expected).norm()) <= rtol * float(expected.norm())
