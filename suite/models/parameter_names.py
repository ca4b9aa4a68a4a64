"""A model without its weights: which parameters and layers it has, from its config or its settings alone."""

from __future__ import annotations

import torch

from suite.models.checkpoints import skeleton
from suite.models.loading import architecture_folder
from suite.models.settings import ModelSpec


def model_without_weights(spec: ModelSpec, name: str, key: str = "model.name") -> torch.nn.Module:
    """The model's modules, whose tensors have names and shapes and take no memory. Nothing is fetched but its config.

    Args:
        name: `tiny`, a folder or a hub id; `key` is the setting that names it, for messages.

    Raises:
        SpecError: no such model.
    """
    with torch.device("meta"):
        if name == "tiny":
            return _tiny(spec)
        return skeleton(architecture_folder(name, key), torch.float32)


def _tiny(spec: ModelSpec) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=spec.tiny.vocabulary,
        hidden_size=spec.tiny.hidden,
        intermediate_size=3 * spec.tiny.hidden,
        num_hidden_layers=spec.tiny.layers,
        num_attention_heads=spec.tiny.heads,
        tie_word_embeddings=True,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)
