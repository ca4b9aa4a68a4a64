"""Text generated in batches is what each prompt gives alone, in families that see padding, or batches at all."""

from __future__ import annotations

import pytest
import torch
import transformers

from suite.engines.transformers.decoding import GenerationRequest, decode_plainly
from suite.engines.transformers.shortcut import Shortcut
from suite.models.layers import carries_state
from suite.models.outline import outline_of
from tests.support.architectures import HEADS, SMALL, VOCABULARY
from tests.support.continuations import CLOSE, EOS, run

STATES = {"mamba_d_state": 4, "use_mamba_kernels": False}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
CARRY = {
    "mamba": transformers.MambaConfig(**SMALL, state_size=4),
    "mamba2": transformers.Mamba2Config(**SMALL, num_heads=8, head_dim=8, state_size=16, n_groups=1),
    "rwkv": transformers.RwkvConfig(**SMALL, attention_hidden_size=32, intermediate_size=48, context_length=64),
    "xlstm": transformers.xLSTMConfig(**SMALL, num_heads=4, num_blocks=2),
    "recurrent gemma": transformers.RecurrentGemmaConfig(
        **{**SMALL, **HEADS, "num_hidden_layers": 3, "num_key_value_heads": 1},
        **{"attention_window_size": 8, "lru_width": 32, "head_dim": 8},
    ),
    "jamba": transformers.JambaConfig(
        **{**SMALL, **HEADS, **EXPERTS, **STATES, "mamba_dt_rank": 4, "pad_token_id": 0},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    ),
    "lfm2": transformers.Lfm2Config(**SMALL, **HEADS, layer_types=["conv", "full_attention"]),
    "minimax": transformers.MiniMaxConfig(
        **{**SMALL, **HEADS, "head_dim": 8, "num_local_experts": 4, "block_size": 8},
        layer_types=["linear_attention", "full_attention"],
    ),
    "qwen3 next": transformers.Qwen3NextConfig(
        **{**SMALL, **HEADS, **EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
        **{"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4},
        **{"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
}
ATTEND = {
    "a window": transformers.MistralConfig(**SMALL, **HEADS, sliding_window=4),
    "a window in some layers": transformers.Gemma3TextConfig(**SMALL, **HEADS, head_dim=8, sliding_window=4),
    "positions from the mask": transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "learned positions": transformers.OPTConfig(
        **SMALL, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64
    ),
    "sinks": transformers.GptOssConfig(**SMALL, **HEADS, head_dim=8, num_local_experts=4, sliding_window=4),
}
PROMPTS = [(1, 2, 3), (5, 9, 4, 5, 6, 1, 1), (8,), (9, 3, 3), (1, 2, 3, 8, 8, 20, 31, 30, 4, 4, 19), (30, 31), (9, 9)]


def made(config: transformers.PretrainedConfig) -> torch.nn.Module:
    """A model that is anything but sure of the same token everywhere."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter.data, std=0.3)
    return model


@torch.inference_mode()
def by_passes(model: torch.nn.Module, request: GenerationRequest) -> tuple[list[int], list[float]]:
    """Greedy tokens from passes over the whole text, without a cache, and how far ahead each was of the next."""
    text, margins = list(request.prompt), []
    while len(text) < request.longest:
        best = model(torch.tensor([text]), use_cache=False).logits[0, -1].topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        if int(best.indices[0]) == EOS:
            break
        text.append(int(best.indices[0]))
    return text[len(request.prompt) :], margins


def agree(model: torch.nn.Module, requests: list[GenerationRequest], found: list[list[int]]) -> bool:
    """Whether all texts are those of passes over each alone, up to a tie."""
    for request, new in zip(requests, found, strict=True):
        want, margins = by_passes(model, request)
        differ = next((i for i, (a, b) in enumerate(zip([*new, EOS], [*want, EOS], strict=False)) if a != b), None)
        if differ is not None and margins[differ] > 10 * CLOSE:
            return False
    return True


@pytest.mark.parametrize("batch_tokens", [40, 1000])
@pytest.mark.parametrize("name", [*CARRY, *ATTEND])
def test_a_batch_gives_each_prompt_what_it_gives_alone(name, batch_tokens):
    model = made((CARRY | ATTEND)[name])
    requests = [GenerationRequest(prompt, 6 + i) for i, prompt in enumerate(PROMPTS)]
    with torch.inference_mode():
        plainly = decode_plainly(model, requests, ends={EOS}, batch_tokens=batch_tokens)
    assert agree(model, requests, plainly)
    assert agree(model, requests, run(model, requests, batch_tokens))


@pytest.mark.parametrize("name", [*CARRY, *ATTEND])
def test_only_attention_is_ever_padded(name):
    """In low precision a comparison might miss what padding does to a state."""
    model, padded = made((CARRY | ATTEND)[name]), []
    assert carries_state(model) == (name in CARRY)
    generate = model.generate

    def spy(**inputs):
        padded.append(not bool(inputs["attention_mask"].all()))
        return generate(**inputs)

    model.generate = spy
    with torch.inference_mode():
        decode_plainly(model, [GenerationRequest(p, 3) for p in PROMPTS], ends={EOS}, batch_tokens=1000)
    assert padded == [True] if name in ATTEND else not any(padded)


def test_a_model_that_sees_padding_all_the_same_is_found_out():
    """A mask that is not applied: nothing in the config says so."""
    model = made(ATTEND["a window"])
    forward, padded = model.model.forward, []

    def unmasked(*args, **inputs):
        padded.append(inputs.pop("attention_mask", None) is not None)
        return forward(*args, **inputs)

    requests = [GenerationRequest(prompt, 6) for prompt in PROMPTS]
    want = [by_passes(model, request)[0] for request in requests]
    model.model.forward = unmasked
    with torch.inference_mode():
        found = decode_plainly(model, requests, ends={EOS}, batch_tokens=1000)
    assert any(padded) and agree(model, requests, found)
    assert [len(new) for new in found] == [len(new) for new in want]


def test_keys_of_generated_text_changed_only_where_the_text_might(tmp_path):
    for name, config in (CARRY | ATTEND).items():
        config.save_pretrained(tmp_path / name)
        assert outline_of(tmp_path / name).generation == ({"padding": 2} if name in CARRY else {})


def test_what_is_not_finite_decides_nothing():
    way = Shortcut()
    assert way.compare([1.0], [float("nan")], 5, torch.float32) and way.sound and not way.checked
