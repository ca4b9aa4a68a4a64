"""Round-to-nearest quantization: weights on a symmetric grid of 2^bits - 1 levels, back as ordinary weights.

De-quantized weights run in any engine, so quantized and other rows compare. Small changes that unlearning made are
rounded away with everything else smaller than half a grid step (arXiv 2410.16454).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject, WeightEdit
from suite.checkpoints import State


def round_to_nearest(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The nearest point of a symmetric grid, per output channel or per group of inputs, in the weight's dtype.

    Args:
        weight: (outputs, inputs), any float dtype; computed in fp32.
        group: as for `grid_codes`.
    """
    rows, columns = weight.shape
    codes, scale = grid_codes(weight, bits, group)
    return codes.mul_(scale).reshape(rows, -1)[:, :columns].to(weight.dtype)


def grid_codes(weight: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Code of each weight and scale of each block: the weight is rounded to code * scale.

    The grid is s * {-(2^(bits-1) - 1), ..., 2^(bits-1) - 1} with s = max|w| / (2^(bits-1) - 1); ties go to even.

    Args:
        weight: (outputs, inputs), any float dtype; computed in fp32.
        group: inputs that share a scale; None for a whole row, 0 for the whole tensor. The last group of a row may be
            shorter, and is then filled up with zeros.

    Returns:
        Codes, whole numbers in fp32, (blocks, weights of a block); scales, (blocks, 1).
    """
    levels = 2 ** (bits - 1) - 1
    columns = weight.shape[1]
    if group == 0:
        blocks = weight.float().reshape(1, -1)
    elif group is None or group >= columns:
        blocks = weight.float()
    else:
        padded = torch.nn.functional.pad(weight.float(), (0, -columns % group))
        blocks = padded.reshape(-1, group)
    scale = blocks.abs().amax(1, keepdim=True) / levels
    return torch.where(scale > 0, blocks / scale, 0.0).round_(), scale


class RoundToNearest(WeightEdit):
    """Weights rounded to a symmetric grid of 2^bits - 1 levels. Linear layers only, as deployed quantizers do."""

    source = "Zhang et al. 2024, arXiv 2410.16454"

    class Settings(AttackSettings):
        """per: which weights share a scale; `group` consecutive inputs of a row when `per` is `group`."""

        name: Literal["rtn"] = "rtn"
        bits: int = Field(ge=2, le=8)
        per: Literal["tensor", "channel", "group"] = "channel"
        group: int = Field(128, ge=2)

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        s = self.settings
        size = {"tensor": 0, "channel": None, "group": s.group}[s.per]
        return {
            name: round_to_nearest(weight.to(context.device), s.bits, size) if is_linear(name, weight) else weight
            for name, weight in state.items()
        }


def is_linear(name: str, weight: Tensor) -> bool:
    """Whether a tensor is the weight of a linear layer inside the network.

    Embeddings and the output layer stay as they are (they are stored in full precision by bitsandbytes, GPTQ and AWQ
    alike), and so do norms and biases.
    """
    return weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe", "norm"))
