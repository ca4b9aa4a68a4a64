"""Arithmetic on lists of one tensor per parameter. Sums are in fp32 and rounded once, inner products in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from suite.oracle.base import Displacement, Tensors


def combined(terms: Iterable[tuple[float, Tensors]], like: Sequence[Tensor]) -> list[Tensor]:
    """The sum of scale * tensors over the terms, shaped and typed like `like`.

    Terms may come from a generator. It is advanced one term at a time, so that only one is in memory, and outside of
    `no_grad`, because it may need to differentiate.
    """
    total = [torch.zeros_like(t, dtype=torch.float32) for t in like]
    for scale, tensors in terms:
        with torch.no_grad():
            for sum_, part in zip(total, tensors, strict=True):
                sum_.add_(part, alpha=scale)
    return [sum_.to(t.dtype) for sum_, t in zip(total, like, strict=True)]


@torch.no_grad()
def dot(one: Tensors, other: Tensors) -> float:
    """Global inner product over all tensors."""
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))


def project(one: Tensors, other: Tensors) -> list[Tensor]:
    """`one` without its component against `other`: if <one, other> < 0, one - <one, other> / ||other||^2 * other.

    The projection of conflicting gradients (PCGrad, arXiv 2001.06782, Alg. 1), with inner products over all tensors.
    """
    conflict = dot(one, other)
    if conflict >= 0:
        return list(one)
    return combined([(1.0, one), (-conflict / dot(other, other), other)], like=one)


@torch.no_grad()
def displaced_weights(weights: Sequence[Tensor], at: Displacement | None) -> list[Tensor]:
    """The displaced weights in fp32; without a displacement the weights themselves."""
    if at is None:
        return [w.detach() for w in weights]
    displaced = [w.detach().to(torch.float32, copy=True) for w in weights]
    for scale, direction in at.terms:
        for weight, part in zip(displaced, direction, strict=True):
            weight.add_(part, alpha=scale)
    return displaced
