"""What the steps train: the weights themselves, or a small adapter that is merged into them on export."""

from __future__ import annotations

from typing import Any

from suite.adapters.base import Adapter, AdapterSettings, Full
from suite.adapters.bounded import Bounded
from suite.adapters.lora import LoRA
from suite.config.registry import Registry

__all__ = ["ADAPTERS", "Adapter", "AdapterSettings", "lora", "low_rank"]

ADAPTERS: Registry[type[Adapter[Any]]] = Registry(
    "adapter",
    [
        Full,
        LoRA,
        Bounded,
    ],
    Adapter,
)
