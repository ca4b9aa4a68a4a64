"""AdamW with 8-bit averages, by bitsandbytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.config.errors import NotInstalledError
from suite.optimizers.first_order import Adam, AdamSettings


class Adam8bit(Adam):
    """AdamW with block-wise 8-bit averages (Dettmers et al. 2022).

    The direction is computed in fp32 and reaches the weights uncompressed, so its grade is first: only the optimizer's
    state is compressed. Tensors of fewer than 4,096 numbers keep averages of 32 bits, as published.
    It runs on CPUs and GPUs.

    Raises:
        NotInstalledError: bitsandbytes is not installed.
    """

    source = "arXiv 2110.02861"

    class Settings(AdamSettings):
        name: Literal["adam8bit"] = "adam8bit"
        weight_decay: float = Field(0.01, ge=0)

    @classmethod
    def check_installed(cls) -> None:
        if find_spec("bitsandbytes") is None:
            raise NotInstalledError(
                "optimizer.name: adam8bit is bitsandbytes' own, which is not installed: "
                "pip install 'regrade[bitsandbytes]'. Or use adamw"
            )

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        self.check_installed()
        logging.getLogger("bitsandbytes").setLevel(
            logging.ERROR
        )  # it warns about missing optional kernels on every CPU
        from bitsandbytes.optim import AdamW8bit

        s = self.settings
        return AdamW8bit(parameters, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)
