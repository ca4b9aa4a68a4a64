"""Round-to-nearest quantization to a symmetric grid of 2^bits - 1 levels, and back to ordinary weights.

De-quantized weights run in any engine, so rows with and without quantization compare. Small changes that unlearning
made are rounded away like everything else below half a grid step (arXiv 2410.16454).

The grid's points are m c / L, where m is the largest magnitude of the weights that share a scale, c a whole number from
-L to L, and L = 2^(bits-1) - 1. Computed as (c * (1/L)) * m, the ends of the grid are exactly +-m, so that rounding a
second time uses the same grid and changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject
from suite.attacks.weights.matrix_edit import MatrixEdit
from suite.models.checkpoints import State

UNQUANTIZED = 32
"""The number of bits that stands for no rounding at all."""

_BLOCK = 1 << 17
"""Weights rounded at a time on a CPU: half a megabyte in fp32, which stays in a core's own cache over all passes."""

_TINY = torch.finfo(torch.float32).tiny
"""Smallest step of a grid: below it, subnormal numbers are too coarse to represent the grid."""


@torch.no_grad()
def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Weights rounded to a symmetric grid per output channel or per group of inputs, in the weight's dtype.

    Args:
        weight: (outputs, inputs), any float dtype; computed in fp32.
        group: as for `grid_codes`.
    """
    rounded = torch.empty_like(weight, memory_format=torch.contiguous_format)
    levels = levels_of(bits)
    largest = _largest(weight) if group == 0 else None
    rows = max(1, _BLOCK // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    # One buffer for all blocks: allocating memory costs more than computing in it.
    buffer = None if weight.dtype is torch.float32 else torch.empty(rows * weight.shape[1], device=weight.device)
    for columns, width in _spans(weight.shape[1], group):
        pairs = (t[:, columns].unflatten(1, (-1, width)) for t in (weight, rounded))
        for source, destination in zip(*(t.split(rows) for t in pairs), strict=True):
            _round_into(destination, source, levels, largest, buffer)
    return rounded


def grid_codes(weight: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """The code of each weight and the scale of each block. Code * scale is the rounded weight, except for the last bit.

    The grid is s * {-(2^(bits-1) - 1), ..., 2^(bits-1) - 1} with s = max|w| / (2^(bits-1) - 1); ties go to even.

    Args:
        weight: (outputs, inputs), any float dtype; computed in fp32.
        group: inputs that share a scale; None for a whole row, 0 for the whole tensor. The last group of a row may be
            shorter, and is then padded with zeros.

    Returns:
        Codes, whole numbers in fp32, (blocks, weights of a block); scales, (blocks, 1), infinite for blocks of zeros.
    """
    columns = weight.shape[1]
    if group == 0:
        blocks = weight.float().reshape(1, -1)
    elif group is None or group >= columns:
        blocks = weight.float()
    else:
        padded = torch.nn.functional.pad(weight.float(), (0, -columns % group))
        blocks = padded.reshape(-1, group)
    scale = _step(_magnitude(blocks), levels_of(bits))
    return (blocks / scale).round_(), scale


def snap(values: Tensor, largest: Tensor, levels: int) -> Tensor:
    """Values rounded to the grid largest * {-1, ..., -1/levels, 0, 1/levels, ..., 1}, in fp32.

    Args:
        values: fp32; values beyond the grid's ends are clamped to them.
        largest: broadcasts with values.
    """
    codes = (values / _step(largest, levels)).round_().clamp_(-levels, levels)
    return codes.mul_(1 / levels).mul_(largest)


def levels_of(bits: int) -> int:
    """Number of grid points on each side of zero."""
    return 2 ** (bits - 1) - 1


def _round_into(
    destination: Tensor, source: Tensor, levels: int, largest: Tensor | None, buffer: Tensor | None
) -> None:
    """Round weights, (rows, groups, weights of a group), into `destination`. `buffer` is for weights not in fp32."""
    if buffer is None:
        rounded = destination
    else:
        rounded = buffer[: source.numel()].view(source.shape)
        source = rounded.copy_(source)
    if largest is None:
        largest = _magnitude(source)
    torch.div(source, _step(largest, levels), out=rounded).round_().mul_(1 / levels).mul_(largest)
    if rounded is not destination:
        destination.copy_(rounded)


def _magnitude(blocks: Tensor) -> Tensor:
    """Largest magnitude along the last dimension, which is kept. Two reductions are faster than abs and one."""
    return torch.maximum(blocks.amax(-1, keepdim=True).abs_(), blocks.amin(-1, keepdim=True).abs_())


def _largest(weight: Tensor) -> Tensor:
    """Largest magnitude of a whole tensor, fp32."""
    parts = weight.split(max(1, _BLOCK // weight.shape[1]))
    return torch.stack([end.abs() for part in parts for end in (part.amax(), part.amin())]).amax().float()


def _step(largest: Tensor, levels: int) -> Tensor:
    """Distance between grid points. It is infinite, so that all weights round to zero, if it would be subnormal."""
    return torch.threshold_(largest / levels, _TINY, math.inf)


def _spans(columns: int, group: int | None) -> list[tuple[slice, int]]:
    """The columns of full groups with the group's size, and the shorter group at the end, if there is one."""
    width = group or columns
    full = columns // width * width
    spans = [(slice(0, full), width), (slice(full, columns), columns - full)]
    return [(span, size) for span, size in spans if span.stop > span.start]


class RoundToNearest(MatrixEdit["RoundToNearest.Settings"]):
    """Weights rounded to a symmetric grid of 2^bits - 1 levels. Linear layers only, as in deployed quantizers."""

    source = "Zhang et al. 2024, arXiv 2410.16454"
    version = 2
    example: ClassVar[Mapping[str, Any]] = {"bits": 4}

    class Settings(AttackSettings):
        """bits: 2 to 8, or 32 for the model without rounding.

        per: which weights share a scale; `group` consecutive inputs of a row when `per` is `group`.
        """

        name: Literal["rtn"] = "rtn"
        bits: int = Field(ge=2, le=UNQUANTIZED)
        per: Literal["tensor", "channel", "group"] = "channel"
        group: int = Field(128, ge=2)

        @model_validator(mode="after")
        def _a_grid(self) -> Self:
            if 8 < self.bits < UNQUANTIZED:
                raise ValueError(f"bits={self.bits}: use 2 to 8, or {UNQUANTIZED} for the model as it is")
            return self

    @property
    def changes_nothing(self) -> bool:
        return self.settings.bits == UNQUANTIZED

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        s = self.settings
        size = {"tensor": 0, "channel": None, "group": s.group}[s.per]
        return self.each(state, subject, context, lambda weight, _: round_to_nearest(weight, s.bits, size))
