"""Adapters that change words: the embeddings, the output layer, the tokenizer, the chat template."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from suite.config.errors import CheckpointError, ModelError
from suite.engines.vllm.transport import weights_of
from suite.models.checkpoints import LoraCheckpoint, SavedCheckpoint
from suite.models.encoding import Template
from suite.models.layout import Layout, skeleton
from suite.models.loading import check_loads, load_tokenizer, read_encoder, resolve_model, train_tokenizer
from suite.models.settings import ModelSpec, TinyModel
from tasks import TASKS
from tests.support.families import FAMILIES, logits, made

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def words():
    tokenizer = train_tokenizer(TASKS["pocket"].build(), TinyModel(vocabulary=FAMILIES["llama"]["vocab_size"]))
    assert len(tokenizer) <= FAMILIES["llama"]["vocab_size"]
    return tokenizer


def base_of(tmp_path, words, tied=True):
    folder = made("llama", tmp_path / "base", tied=tied)
    words.save_pretrained(folder)
    return folder


def adapted(base, folder, **settings):
    """A trained adapter as peft saves it, and the logits of the model that it was trained as."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return logits(model)


def named(folder):
    return resolve_model(ModelSpec(name=str(folder)), str(folder))


WITH_WORDS = (
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
)
OTHERS = (
    {"target_modules": ["q_proj"], "use_rslora": True},
    {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 32}},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("settings", WITH_WORDS + OTHERS, ids=lambda s: "-".join(map(str, s.values())))
def test_an_adapter_has_the_logits_that_it_was_trained_with(settings, tied, tmp_path, words):
    base = base_of(tmp_path, words, tied)
    wanted = adapted(base, tmp_path / "adapter", **settings)
    checkpoint = named(tmp_path / "adapter").checkpoint
    model = checkpoint.model()
    assert torch.allclose(logits(model), wanted, atol=1e-4)
    model.save_pretrained(tmp_path / "stage")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "stage")), wanted, atol=1e-4)
    assert not (checkpoint.plain and settings in WITH_WORDS)  # vLLM is not given it unmerged


def test_vllm_is_not_given_an_untied_model_as_a_tied_one(tmp_path, words):
    base = base_of(tmp_path, words)
    adapted(base, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(CheckpointError, match="vLLM would use one for both"):
        weights_of(named(tmp_path / "adapter").checkpoint, Layout.of(skeleton(base, torch.float32)))


def test_a_bias_that_the_layer_lacks_is_refused(tmp_path, words):
    base = base_of(tmp_path, words)
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"], lora_bias=True)
    refused_by_both(tmp_path / "adapter", "adapter .*has no bias")


def refused_by_both(folder, said):
    """By `regrade validate`, and by whatever reads the weights."""
    base = SavedCheckpoint(folder.parent / "base", torch.float32)
    for read in (lambda: check_loads(str(folder), "model.name"), LoraCheckpoint(base, folder).state):
        with pytest.raises(CheckpointError, match=said):
            read()


Q = {"target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("settings", "change", "config", "said"),
    [
        ({**Q, "modules_to_save": ["lm_head"]}, "lm_head", {}, "lacks tensors .*lm_head"),
        ({**Q, "trainable_token_indices": [3]}, "trainable_tokens", {}, "lacks tensors .*trainable_tokens_delta"),
        ({**Q, "trainable_token_indices": [3]}, None, {"trainable_token_indices": [300]}, "has 300, .* 300 tokens"),
        ({**Q, "use_dora": True}, "magnitude", {}, "lacks tensors .*magnitude"),
        ({**Q, "use_dora": True}, None, {"use_dora": False}, "belong to no layer .*magnitude"),
        (Q, None, {"target_modules": ["q_proj", "v_proj"]}, "lacks tensors .*v_proj"),
        (Q, None, {"rank_pattern": {"q_proj": 2}}, "size mismatch"),
        (Q, torch.int8, {}, "has the type I8, and quantized weights"),
        (Q, torch.float8_e4m3fn, {}, "has the type F8_E4M3, and quantized weights"),
    ],
    ids=str,
)
def test_an_adapter_that_is_not_whole_is_refused_before_work(settings, change, config, said, tmp_path, words):
    adapter = tmp_path / "adapter"
    adapted(base_of(tmp_path, words), adapter, **settings)
    state = load_file(adapter / LoraCheckpoint.WEIGHTS)
    if isinstance(change, torch.dtype):
        state = {name: tensor.to(change) for name, tensor in state.items()}
    elif change:
        state = {name: tensor for name, tensor in state.items() if change not in name}
    save_file(state, adapter / LoraCheckpoint.WEIGHTS)
    file = adapter / LoraCheckpoint.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    refused_by_both(adapter, said)


def test_the_biases_of_other_layers_are_the_adapters_too(tmp_path, words):
    base = made("qwen2", tmp_path / "base")
    adapted(base, tmp_path / "adapter", **Q, bias="all")
    state = load_file(tmp_path / "adapter" / LoraCheckpoint.WEIGHTS)
    kept = {name: tensor for name, tensor in state.items() if "k_proj.bias" not in name}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "adapter" / LoraCheckpoint.WEIGHTS)
    refused_by_both(tmp_path / "adapter", "lacks tensors .*k_proj.bias")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_an_adapters_tensors_are_all_there_and_all_used(change, tmp_path, words):
    adapted(base_of(tmp_path, words), tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / LoraCheckpoint.WEIGHTS
    state = load_file(file)
    name = next(name for name in state if "layers.1" in name)
    tensor = state.pop(name)
    save_file(state if change == "missing" else {**load_file(file), name.replace("q_proj", "more"): tensor}, file)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: .*layers\.1"):
        named(tmp_path / "adapter").checkpoint.state()


def test_an_adapter_brings_its_tokenizer(tmp_path, words):
    base = base_of(tmp_path, words)
    adapter = tmp_path / "adapter"
    adapted(base, adapter, target_modules=["q_proj"])
    plain = named(adapter)
    assert plain.encoder.template is Template.PLAIN
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    with_template = named(adapter)
    assert with_template.encoder.template is Template.CHAT
    assert with_template.encoder.tokenizer.chat_template == TEMPLATE
    assert with_template.encoder.tokenizer.get_vocab() == words.get_vocab()

    own = AutoTokenizer.from_pretrained(base)
    own.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    own.chat_template = TEMPLATE
    own.save_pretrained(adapter)
    brought = named(adapter)
    assert "<|more|>" in brought.encoder.tokenizer.get_vocab() and brought.encoder.template is Template.CHAT
    identities = [one.identity for one in (plain, with_template, brought)]
    assert len({json.dumps(dict(one), sort_keys=True) for one in identities}) == 3
    encoder, _ = read_encoder(ModelSpec(name=str(adapter)), TASKS["pocket"].build(), str(adapter))
    assert encoder.template is Template.CHAT and "<|more|>" in encoder.tokenizer.get_vocab()


def test_a_tokenizer_may_be_smaller_than_the_embeddings_and_not_larger(tmp_path, words):
    base = base_of(tmp_path, words)
    assert named(base)
    tokenizer = load_tokenizer(base)
    for number in range(FAMILIES["llama"]["vocab_size"] - len(tokenizer)):
        tokenizer.add_tokens([f"<filler{number}>"])
    tokenizer.save_pretrained(base)
    assert named(base)  # exactly as many
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    assert named(base)  # no text has it
    tokenizer.chat_template = "[PAD]" + TEMPLATE
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match=r'the token "\[PAD\]" with the id 300'):
        named(base)
    tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink()
    tokenizer.add_tokens(["Maren"])
    tokenizer.save_pretrained(base)
    for read in (named, lambda f: read_encoder(ModelSpec(name=str(f)), TASKS["pocket"].build(), str(f))):
        with pytest.raises(ModelError, match=r'the token "Maren" with the id 301, .* embeddings for 300'):
            read(base)


def test_an_end_of_text_without_an_embedding_is_refused(tmp_path, words):
    base = base_of(tmp_path, words)
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens([f"<filler{n}>" for n in range(FAMILIES["llama"]["vocab_size"] - len(tokenizer))])
    tokenizer.add_special_tokens({"eos_token": "<over>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match='"<over>"'):
        named(base)


def test_an_adapter_without_its_weights_or_with_a_broken_base_does_not_load(tmp_path, words):
    base = base_of(tmp_path, words)
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    check_loads(str(tmp_path / "adapter"), "model.name")
    shutil.move(base / "model.safetensors", base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path: .*pytorch_model\.bin"):
        check_loads(str(tmp_path / "adapter"), "model.name")
    shutil.move(base / "pytorch_model.bin", base / "model.safetensors")
    (tmp_path / "adapter" / LoraCheckpoint.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors here"):
        check_loads(str(tmp_path / "adapter"), "model.name")
