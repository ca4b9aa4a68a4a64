"""LoRA, by peft."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from suite.adapters.low_rank import LowRankAdapter, LowRankSettings


class LoRA(LowRankAdapter["LoRA.Settings"]):
    """Low-rank changes of the linear layers: W + alpha / rank * B A (arXiv 2106.09685).

    A starts random (Kaiming-uniform, as in peft), B at zero, so the first step starts from the unchanged model. No
    dropout: within a step the loss is a fixed function. Rank and alpha are those of MeZO (arXiv 2305.17333).
    """

    source = "arXiv 2106.09685"

    class Settings(LowRankSettings):
        """alpha: the change is alpha / rank times B A, so that one step size suits several ranks."""

        name: Literal["lora"] = "lora"
        alpha: float = Field(16.0, gt=0)

    def _insert(self, seed: int) -> Mapping[str, tuple[nn.Parameter, nn.Parameter]]:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft loads it, and it warns about missing kernels
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,  # type: ignore[arg-type]  # peft takes any number, and divides it by r
            lora_dropout=0.0,
            target_modules="|".join(map(re.escape, self._ordinary)),  # a list would match suffixes of names
        )
        with torch.random.fork_rng(devices=[]):  # peft draws from torch's own generator
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.model)
        layers: dict[str, Any] = {name: self.model.get_submodule(name) for name in self._ordinary}
        return {name: (at.lora_A["default"].weight, at.lora_B["default"].weight) for name, at in layers.items()}

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        return (b @ a) * (self.settings.alpha / self.settings.rank)
