"""Architectures under attack: for each, by hand, which tensors hold the matrices that are edited, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig

from suite.models.checkpoints import State, skeleton

VOCABULARY = 60
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
ROUTED = {"num_experts_per_tok": 2, "num_local_experts": 4}
LATENT = {
    **{**ATTENTION, "num_key_value_heads": 4, "num_experts_per_tok": 2},
    **{"kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "n_shared_experts": 1,
}
BLOCK, GPT = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, {"n_embd": 32, "n_positions": 64}


@dataclass(frozen=True)
class Family:
    """An architecture, and by hand: the ends of the names of what is edited.

    Attributes:
        rows: matrices of their own, (outputs, inputs). columns: the same, (inputs, outputs).
        experts: (experts, outputs, inputs). turned: (experts, inputs, outputs).
    """

    config: PretrainedConfig
    rows: str = ""
    columns: str = ""
    experts: str = ""
    turned: str = ""

    def expected(self, name: str) -> str | None:
        """Which of the four a tensor is, if any."""
        stem = name.removesuffix(".weight")
        kinds = ("rows", "columns", "experts", "turned")
        return next((kind for kind in kinds if stem.endswith(tuple(getattr(self, kind).split() or "-"))), None)


QKVO = "q_proj k_proj v_proj o_proj"
FUSED = "experts.gate_up_proj experts.down_proj"
MAMBA = "in_proj x_proj out_proj"
FAMILIES = {
    "llama": Family(transformers.LlamaConfig(**ATTENTION), f"{QKVO} gate_proj up_proj down_proj"),
    "gpt2": Family(transformers.GPT2Config(**BLOCK, **GPT), columns="c_attn c_proj c_fc"),
    "mixtral": Family(transformers.MixtralConfig(**ATTENTION, **ROUTED), QKVO, experts=FUSED),
    "qwen3_moe": Family(
        transformers.Qwen3MoeConfig(
            **ATTENTION, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8
        ),
        QKVO,
        experts=FUSED,
    ),
    "gpt_oss": Family(transformers.GptOssConfig(**ATTENTION, **ROUTED, head_dim=8), QKVO, turned=FUSED),
    "llama4": Family(
        transformers.Llama4TextConfig(
            **{**ATTENTION, **ROUTED, "num_experts_per_tok": 1}, intermediate_size_mlp=56, head_dim=8
        ),
        f"{QKVO} shared_expert.gate_proj shared_expert.up_proj shared_expert.down_proj",
        turned=FUSED,
    ),
    "deepseek_v3": Family(
        transformers.DeepseekV3Config(**LATENT),
        "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj mlp.gate_proj mlp.up_proj mlp.down_proj "
        "shared_experts.gate_proj shared_experts.up_proj shared_experts.down_proj",
        experts=FUSED,
    ),
    "granitemoe": Family(transformers.GraniteMoeConfig(**ATTENTION, **ROUTED), QKVO, experts=FUSED),
    "jetmoe": Family(
        transformers.JetMoeConfig(**ATTENTION, **ROUTED, kv_channels=8),
        "kv_proj",
        experts="input_linear output_linear",
    ),
    "dbrx": Family(
        transformers.DbrxConfig(
            **{"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
            ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ),
        "Wqkv out_proj",
        experts="w1 v1",
        turned="w2",
    ),
    "mamba": Family(transformers.MambaConfig(**SMALL, state_size=4), MAMBA),
    "jamba": Family(
        transformers.JambaConfig(
            **ATTENTION,
            **{"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
            use_mamba_kernels=False,
        ),
        f"{QKVO} {MAMBA} feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj",
        experts=FUSED,
    ),
    "lfm2": Family(
        transformers.Lfm2Config(**ATTENTION, layer_types=["conv", "full_attention"]),
        "q_proj k_proj v_proj out_proj in_proj w1 w2 w3",
    ),
    "falcon": Family(
        transformers.FalconConfig(**SMALL, num_attention_heads=4),
        "query_key_value dense dense_h_to_4h dense_4h_to_h",
    ),
    "bloom": Family(transformers.BloomConfig(**BLOCK), "query_key_value dense dense_h_to_4h dense_4h_to_h"),
    "phi3": Family(transformers.Phi3Config(**ATTENTION, pad_token_id=0), "qkv_proj o_proj gate_up_proj down_proj"),
}
MIXTURES = [name for name, family in FAMILIES.items() if family.experts or family.turned]
CALIBRATED = [
    {"name": "gptq", "bits": 2, "group": 8, "samples": 2},
    {"name": "awq", "bits": 4, "group": 8, "samples": 2},
    {"name": "prune", "by": "wanda", "sparsity": 0.5, "samples": 2},
]
TEXTS = [(3, 5, 2, 7, 3), (4, 4, 9, 50, 41, 33, 20), (11, 2, 3, 4, 5, 6, 7, 8, 30, 31, 59)]


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory."""

    tensors: State
    architecture: Path

    def state(self) -> State:
        return dict(self.tensors)

    def model(self, device: torch.device | str = "cpu") -> torch.nn.Module:
        model = skeleton(self.architecture, torch.float32)
        model.load_state_dict(self.tensors)
        return model.to(device)


def made(config: PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """A model whose router is undecided, so that different tokens go to different experts."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return model


def subject_of(name: str, folder: Path) -> tuple[Family, Weights]:
    family = FAMILIES[name]
    family.config.save_pretrained(folder)
    return family, Weights({n: t.clone() for n, t in made(family.config).state_dict().items()}, folder)


def matrices(kind: str, tensor: np.ndarray, experts: int) -> list[np.ndarray]:
    """Every matrix of a tensor, (outputs, inputs), by hand."""
    if kind in ("rows", "columns"):
        return [tensor if kind == "rows" else tensor.T]
    each = tensor.reshape(experts, -1, tensor.shape[-1])
    return [one if kind == "experts" else one.T for one in each]


def experts_of(config: PretrainedConfig) -> int:
    if config.model_type == "dbrx":
        return config.ffn_config.moe_num_experts
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((getattr(config, name) for name in names if hasattr(config, name)), 1)
