"""Tiny models of many families, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

WORDS = 300
_PLAIN = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SHARED = {**_PLAIN, "num_key_value_heads": 2}
_WIDE = {**_SHARED, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_FEW = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2}

FAMILIES: dict[str, dict] = {
    "llama": _SHARED,
    "mistral": _SHARED,
    "mixtral": {**_SHARED, "num_local_experts": 4},
    "qwen2": _SHARED,
    "qwen2_moe": {**_SHARED, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": _WIDE,
    "qwen3_moe": {**_WIDE, **_EXPERTS},
    "gemma": _WIDE,
    "gemma2": _WIDE,
    "gemma3_text": _WIDE,
    "phi": _SHARED,
    "phi3": _SHARED,
    "phimoe": {**_SHARED, "num_local_experts": 4},
    "gpt2": _GPT2,
    "gpt_neox": _PLAIN,
    "gptj": {**_GPT2, "rotary_dim": 4},
    "codegen": {**_GPT2, "rotary_dim": 4},
    "opt": {**_FEW, "ffn_dim": 64, "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**_FEW, "num_attention_heads": 4},
    "olmo2": _SHARED,
    "olmoe": {**_SHARED, "num_experts": 4, "num_experts_per_tok": 2},
    "stablelm": _SHARED,
    "starcoder2": _SHARED,
    "mpt": {"vocab_size": WORDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "mamba": {**_FEW, "state_size": 4},
    "granite": _SHARED,
    "granitemoe": {**_SHARED, "num_local_experts": 4},
    "cohere": _SHARED,
    "deepseek_v3": {
        **_PLAIN,
        **{"moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    },
    "gpt_neo": {
        **{"vocab_size": WORDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8},
        **{"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    },
    "olmo": _SHARED,
    "smollm3": _SHARED,
    "glm4": _WIDE,
    "cohere2": _SHARED,
    "gemma4_text": {
        **{**_WIDE, "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 1024},
    },
    "gpt_oss": {**_WIDE, "num_local_experts": 4, "num_experts_per_tok": 2},
}

IDS = torch.arange(3, 23)[None]


def made(
    family: str,
    folder: Path,
    *,
    tied: bool = False,
    seed: int = 0,
    noise: float = 0.05,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **saving,
) -> Path:
    """A folder with a model of a family, as transformers saves it; no two of its numbers are likely to be equal.

    Args:
        noise: standard deviation of what is added to its random weights; of 0.05 for vectors.
        settings: of its config, besides the family's.
    """
    config = transformers.AutoConfig.for_model(family, **{**FAMILIES[family], **settings}, tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (noise if parameter.ndim > 1 else 0.05))
        model.save_pretrained(folder, **saving)
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def expected(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What plain transformers computes with a folder."""
    return logits(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
