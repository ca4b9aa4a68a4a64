"""Models of many families have the logits that plain transformers gives them, bit for bit, on every way here."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from suite.engines.vllm.fingerprint import combined, word_sum
from suite.engines.vllm.transport import weights_of
from suite.models.checkpoints import (
    Heads,
    LoraCheckpoint,
    SavedCheckpoint,
    TensorCheckpoint,
    heads_of,
    interpolated,
)
from suite.models.layout import Layout, skeleton
from suite.models.loading import check_loads
from tests.support.families import FAMILIES, expected, logits, made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_the_logits_of_transformers(family, tied, dtype, tmp_path):
    folder = made(family, tmp_path / "model", tied=tied)
    wanted = expected(folder, dtype)
    checkpoint = SavedCheckpoint(folder, dtype)
    checkpoint.check()
    model = checkpoint.model()
    assert torch.equal(logits(model), wanted)

    model.save_pretrained(tmp_path / "stage")  # as stages are saved
    stage = SavedCheckpoint(tmp_path / "stage")
    stage.check()
    assert torch.equal(logits(stage.model()), wanted)
    assert torch.equal(expected(tmp_path / "stage", dtype), wanted)
    assert torch.equal(logits(TensorCheckpoint.of(model, folder).model()), wanted)
    assert torch.equal(logits(interpolated(checkpoint, stage, 0.5).model()), wanted)

    layout = Layout.of(skeleton(folder, dtype))
    from_files = dict(weights_of(checkpoint, layout).tensors())
    from_memory = dict(weights_of(TensorCheckpoint.of(model, folder), layout).tensors())
    assert from_files.keys() == from_memory.keys()  # vLLM knows them by the names on disk
    if dtype is torch.float32:
        assert combined(map(word_sum, from_files.values())) == combined(map(word_sum, from_memory.values()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "gemma2", "falcon", "phi3"])
def test_an_adapter_is_merged_into_any_family(family, tmp_path):
    base = SavedCheckpoint(made(family, tmp_path / "base"), torch.float32)
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base.model(), config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = logits(LoraCheckpoint(base, tmp_path / "adapter").model())
    assert torch.allclose(found, logits(adapted), atol=1e-4)
    assert not torch.allclose(found, expected(base.path), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("family", ["gptj", "codegen", "bloom", "falcon", "gemma2"])
def test_positions_far_into_a_text_have_the_angles_of_transformers(family, dtype, tmp_path):
    """Which a model in few bits computes in fp32."""
    far = {"n_positions": 512, "rotary_dim": 8} if family in ("gptj", "codegen") else {}
    folder = made(family, tmp_path / "model", settings=far)
    wanted = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).named_buffers())
    found = dict(SavedCheckpoint(folder, dtype).model().named_buffers())
    assert found.keys() == wanted.keys() and bool(wanted) == (family != "bloom")
    for name, tensor in wanted.items():
        assert found[name].dtype is tensor.dtype and torch.equal(found[name], tensor), name


def test_a_model_whose_layers_have_heads_of_different_sizes_is_read(tmp_path):
    folder = made("gemma4_text", tmp_path / "model")
    check_loads(str(folder), "model.name")
    assert heads_of(folder) == Heads(size=None, shared=2)
