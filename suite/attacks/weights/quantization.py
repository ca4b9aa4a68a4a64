"""Round-to-nearest quantization: weights on a symmetric grid of 2^bits - 1 levels, back as ordinary weights.

De-quantized weights run in any engine, so quantized and other rows compare. Small changes that unlearning made are
rounded away with everything else smaller than half a grid step (arXiv 2410.16454).

The grid's points are m c / L, where m is the largest magnitude of the weights that share a scale, c a whole number from
-L to L, and L = 2^(bits-1) - 1. Computed as (c * (1/L)) * m, its ends are m itself, so that the next one who rounds
finds the same grid: rounding twice is rounding once, bit for bit.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject, WeightEdit
from suite.models.checkpoints import State
from suite.models.layers import is_linear

WHOLE = 32
"""Bits with which no weight is rounded."""

_BLOCK = 1 << 17
"""Weights rounded at a time on a CPU: in fp32 half a megabyte, which stays in a core's own cache over all passes."""

_TINY = torch.finfo(torch.float32).tiny
"""Smallest step of a grid. Below it floating-point numbers are a grid themselves, too coarse for another."""


@torch.no_grad()
def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The nearest point of a symmetric grid, per output channel or per group of inputs, in the weight's dtype.

    Args:
        weight: (outputs, inputs), any float dtype; computed in fp32.
        group: as for `grid_codes`.
    """
    rounded = torch.empty_like(weight, memory_format=torch.contiguous_format)
    levels = levels_of(bits)
    largest = _largest(weight) if group == 0 else None
    rows = max(1, _BLOCK // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    # One array for all blocks: fresh memory costs more than what is computed in it.
    wide = None if weight.dtype is torch.float32 else torch.empty(rows * weight.shape[1], device=weight.device)
    for columns, width in _spans(weight.shape[1], group):
        pairs = (t[:, columns].unflatten(1, (-1, width)) for t in (weight, rounded))
        for source, place in zip(*(t.split(rows) for t in pairs), strict=True):
            _round_into(place, source, levels, largest, wide)
    return rounded


def grid_codes(weight: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Code of each weight and scale of each block: the weight is rounded to code * scale, but for the last bit.

    The grid is s * {-(2^(bits-1) - 1), ..., 2^(bits-1) - 1} with s = max|w| / (2^(bits-1) - 1); ties go to even.

    Args:
        weight: (outputs, inputs), any float dtype; computed in fp32.
        group: inputs that share a scale; None for a whole row, 0 for the whole tensor. The last group of a row may be
            shorter, and is then filled up with zeros.

    Returns:
        Codes, whole numbers in fp32, (blocks, weights of a block); scales, (blocks, 1), infinite where all are zero.
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
    """The nearest points of the grid largest * {-1, ..., -1/levels, 0, 1/levels, ..., 1}, in fp32.

    Args:
        values: fp32; what lies beyond the grid's ends comes to stand there.
        largest: broadcasts with values.
    """
    codes = (values / _step(largest, levels)).round_().clamp_(-levels, levels)
    return codes.mul_(1 / levels).mul_(largest)


def levels_of(bits: int) -> int:
    """Points of the grid on either side of zero."""
    return 2 ** (bits - 1) - 1


def _round_into(place: Tensor, source: Tensor, levels: int, largest: Tensor | None, wide: Tensor | None) -> None:
    """Round (rows, groups, weights of a group) into place. What is not fp32 is computed on in `wide`."""
    if wide is None:
        room = place
    else:
        room = wide[: source.numel()].view(source.shape)
        source = room.copy_(source)
    if largest is None:
        largest = _magnitude(source)
    torch.div(source, _step(largest, levels), out=room).round_().mul_(1 / levels).mul_(largest)
    if room is not place:
        place.copy_(room)


def _magnitude(blocks: Tensor) -> Tensor:
    """Largest magnitude along the last dimension, which is kept. Two passes that write nothing beat abs and one."""
    return torch.maximum(blocks.amax(-1, keepdim=True).abs_(), blocks.amin(-1, keepdim=True).abs_())


def _largest(weight: Tensor) -> Tensor:
    """Largest magnitude of a whole tensor, fp32."""
    parts = weight.split(max(1, _BLOCK // weight.shape[1]))
    return torch.stack([end.abs() for part in parts for end in (part.amax(), part.amin())]).amax().float()


def _step(largest: Tensor, levels: int) -> Tensor:
    """Distance between a grid's points; infinite, so that all is rounded to zero, where it would be subnormal."""
    return torch.nn.functional.threshold_(largest / levels, _TINY, math.inf)


def _spans(columns: int, group: int | None) -> list[tuple[slice, int]]:
    """Columns that fall into whole groups with the group's size, and the shorter group that may be left."""
    width = group or columns
    whole = columns // width * width
    spans = [(slice(0, whole), width), (slice(whole, columns), columns - whole)]
    return [(span, size) for span, size in spans if span.stop > span.start]


class RoundToNearest(WeightEdit):
    """Weights rounded to a symmetric grid of 2^bits - 1 levels. Linear layers only, as deployed quantizers do."""

    source = "Zhang et al. 2024, arXiv 2410.16454"
    version = 2

    class Settings(AttackSettings):
        """bits: 2 to 8, or 32 for none taken away: the model as it is.

        per: which weights share a scale; `group` consecutive inputs of a row when `per` is `group`.
        """

        name: Literal["rtn"] = "rtn"
        bits: int = Field(ge=2, le=WHOLE)
        per: Literal["tensor", "channel", "group"] = "channel"
        group: int = Field(128, ge=2)

        @model_validator(mode="after")
        def _a_grid(self) -> RoundToNearest.Settings:
            if 8 < self.bits < WHOLE:
                raise ValueError(f"bits={self.bits}: use 2 to 8, or {WHOLE} for the model as it is")
            return self

    @property
    def changes_nothing(self) -> bool:
        return self.settings.bits == WHOLE

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        s = self.settings
        size = {"tensor": 0, "channel": None, "group": s.group}[s.per]
        return {
            name: round_to_nearest(weight.to(context.device), s.bits, size).to(weight.device)
            if is_linear(name, weight)
            else weight
            for name, weight in state.items()
        }
