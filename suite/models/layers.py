"""The parts of a model: linear weights and transformer blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def is_linear(name: str, weight: Tensor) -> bool:
    """Whether a tensor is the weight of a linear layer inside the network.

    Embeddings and the output layer stay as they are (they are stored in full precision by bitsandbytes, GPTQ and AWQ
    alike), and so do norms and biases.
    """
    return weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe", "norm"))


def blocks_of(model: torch.nn.Module) -> torch.nn.ModuleList | None:
    """The blocks of a transformers model: the outermost module list with as many entries as the config has layers."""
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if count is None or not isinstance(model, torch.nn.Module):
        return None
    return next((m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), None)
