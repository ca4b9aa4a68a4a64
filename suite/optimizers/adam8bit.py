"""AdamW whose averages are kept in 8 bits a number, by bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.first_order import Adam
from suite.settings import SpecError


class Adam8bit(Adam):
    """AdamW with block-wise 8-bit averages (Dettmers et al. 2022).

    The direction is computed in fp32 and reaches the weights whole, so its grade is first: compressing the optimizer's
    memory is not compressing its direction. Tensors of fewer than 4,096 numbers keep averages of 32 bits, as published.
    It runs on CPUs and GPUs.

    Raises:
        SpecError: bitsandbytes is not installed.
    """

    source = "arXiv 2110.02861"

    class Settings(Adam.Settings):
        name: Literal["adam8bit"] = "adam8bit"
        weight_decay: float = Field(0.01, ge=0)

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise SpecError(
                "optimizer.name: adam8bit is bitsandbytes' own, which is not installed: "
                "pip install 'regrade[bitsandbytes]'. Or use adamw"
            ) from None
        s = self.settings
        return AdamW8bit(parameters, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)
