"""Weights sent to another process: checked against the architecture, and the same bytes on arrival."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from suite.config.errors import CheckpointError, ModelError
from suite.engines.vllm.architectures import Architectures
from suite.engines.vllm.fingerprint import combined, word_sum
from suite.engines.vllm.transport import FileSource, MemorySource, weights_of
from suite.models.checkpoints import Heads, LoraCheckpoint, SavedCheckpoint, TensorCheckpoint, heads_of
from suite.models.layout import Layout, skeleton
from suite.models.loading import resolve_model
from suite.models.settings import ModelSpec


def fingerprint(tensors) -> int:
    return combined(map(word_sum, tensors))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=request.param,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture
def layout(folder):
    return Layout.of(skeleton(folder, torch.float32))


def test_files_and_memory_bring_the_same_tensors(folder, layout):
    checkpoint = SavedCheckpoint(folder)
    from_file = dict(weights_of(checkpoint, layout).tensors())
    source = weights_of(TensorCheckpoint(checkpoint.state(), folder), layout)
    from_memory = dict(pickle.loads(pickle.dumps(source)).tensors())
    assert (
        list(from_file) == list(from_memory) == list(layout.chosen({n: tuple(t.shape) for n, t in from_file.items()}))
    )
    for name, tensor in from_file.items():
        assert tensor.dtype == from_memory[name].dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), from_memory[name].view(torch.int16))
    assert isinstance(source, MemorySource) and isinstance(weights_of(checkpoint, layout), FileSource)
    assert fingerprint(from_file.values()) == fingerprint(from_memory.values())


def test_a_tied_tensor_is_sent_once(folder, layout):
    model = SavedCheckpoint(folder).model()
    tied = model.config.tie_word_embeddings
    arrays = MemorySource.of(dict(model.state_dict()), layout).arrays  # names both of a tied pair
    assert ("lm_head.weight" in arrays) != tied and "model.embed_tokens.weight" in arrays


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.norm.weight"), "lacks the tensor model.norm.weight"),
        (lambda s: s.update({"more.weight": torch.ones(2)}), "tensors that the architecture lacks: more.weight"),
        (lambda s: s.update({"model.norm.weight": torch.ones(63)}), r"\(63,\), the architecture \(64,\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(kind, change, message, folder, layout, tmp_path):
    state = SavedCheckpoint(folder).state()
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    checkpoint = SavedCheckpoint(tmp_path) if kind == "file" else TensorCheckpoint(state, folder)
    with pytest.raises(CheckpointError, match=message):
        weights_of(checkpoint, layout)


def test_a_file_that_was_written_again_is_not_the_same_weights(folder, layout, tmp_path):
    import os

    def source_now():
        return weights_of(SavedCheckpoint(tmp_path), layout)

    state = SavedCheckpoint(folder).state()
    save_file(state, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    first = source_now()
    assert first == source_now()
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert first != source_now()


def test_an_architecture_is_known_by_what_matters(folder, tmp_path):
    known = Architectures()
    first = known.of(folder)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_version": "0", "dtype": "float32"}))
    assert known.of(tmp_path).config == first.config
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert known.of(tmp_path).config != first.config
    assert first.context == config["max_position_embeddings"] and heads_of(folder) == Heads(32, 2)


def test_an_adapter_is_a_checkpoint(folder, tmp_path):
    """W + alpha / r B A, from peft's own files; the base is found by the name in them."""
    from peft import LoraConfig, get_peft_model

    base = SavedCheckpoint(folder, torch.float32)
    torch.manual_seed(1)
    adapted = get_peft_model(base.model(), LoraConfig(r=4, lora_alpha=12, target_modules=["v_proj"]))
    with torch.no_grad():
        adapted.get_submodule("base_model.model.model.layers.1.self_attn.v_proj").lora_B["default"].weight.normal_()
    adapted.save_pretrained(tmp_path)
    checkpoint = LoraCheckpoint(base, tmp_path)
    before, after = base.state(), checkpoint.state()
    layer = adapted.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    name = "model.layers.1.self_attn.v_proj.weight"
    change = 12 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(after[name], before[name] + change, atol=1e-6)
    assert all(torch.equal(after[n], t) for n, t in before.items() if n != name)
    assert checkpoint.plain and checkpoint.rank == 4 and checkpoint.architecture == folder

    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    assert not checkpoint.plain
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        resolve_model(ModelSpec(name=str(tmp_path)), str(tmp_path), "checkpoint")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors here"):
        checkpoint.state()
