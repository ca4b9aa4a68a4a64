"""A model without its weights: which parameters and layers it has, from its config or its settings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suite.models.layout import skeleton
from suite.models.named_folder import architecture_folder
from suite.models.settings import ModelSpec
from suite.models.tiny import tiny_config

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


def model_without_weights(spec: ModelSpec, name: str, key: str = "model.name") -> CausalLM:
    """The model's modules, whose tensors have names and shapes and take no memory. Nothing is fetched but its config.

    Args:
        name: `tiny`, a folder or a hub id; `key` is the setting that names it, for messages.

    Raises:
        MissingError, ModelError: no such model, or one that cannot be used, saying why.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        if name == "tiny":
            return AutoModelForCausalLM.from_config(tiny_config(spec.tiny, spec.tiny.vocabulary))
        return skeleton(architecture_folder(name, key), torch.float32)
