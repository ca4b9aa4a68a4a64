"""Which files and tensors of a folder count, and what is refused by name: from the headers, before any work."""

from __future__ import annotations

import contextlib
import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from suite.config.errors import CheckpointError, ModelError
from suite.engines.vllm.transport import weights_of
from suite.models.checkpoints import SavedCheckpoint, TensorCheckpoint
from suite.models.folder import OPENED
from suite.models.identity import TOKENIZER, fingerprint
from suite.models.layout import Layout, load_state, skeleton
from suite.models.loading import check_loads
from suite.models.weight_files import check_finite, weight_files
from tests.support.families import expected, logits, made

FILE = "model.safetensors"


@pytest.fixture
def llama(tmp_path):
    return made("llama", tmp_path / "llama")


@pytest.fixture
def shards(tmp_path):
    return made("llama", tmp_path / "shards", max_shard_size="40KB")


def rewrite(folder, change):
    state = load_file(folder / FILE)
    save_file(change(state) or state, folder / FILE, metadata={"format": "pt"})


def settle(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def found(folder) -> torch.Tensor:
    check_loads(str(folder), "model.name")
    return logits(SavedCheckpoint(folder, torch.float32).model())


@pytest.mark.parametrize("name", ["old_model.safetensors", "a.safetensors", "consolidated.safetensors"])
def test_a_file_that_the_index_does_not_name_does_not_count(name, shards):
    wanted = expected(shards)
    zeros = {k: torch.zeros_like(v) for file in weight_files(shards) for k, v in load_file(file).items()}
    save_file({**zeros, "layers.0.attention.wq.weight": torch.zeros(4, 4)}, shards / name)
    assert torch.equal(found(shards), wanted) and torch.equal(expected(shards), wanted)


def test_one_file_counts_before_an_index(shards, llama):
    shutil.copy(llama / FILE, shards)
    assert torch.equal(found(shards), expected(shards)) and torch.equal(found(shards), expected(llama))


def test_a_config_may_name_the_file(llama):
    (llama / FILE).rename(llama / "other.safetensors")
    settle(llama, transformers_weights="other.safetensors")
    assert torch.equal(found(llama), expected(llama))
    settle(llama, transformers_weights="../other.safetensors")
    with pytest.raises(ModelError, match=r"transformers_weights is .*no safetensors file of this folder"):
        found(llama)


def test_a_missing_shard_is_named(shards):
    file = weight_files(shards)[1]
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"index\.json: names {file.name}, which is not in the folder"):
        check_loads(str(shards), "model.name")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", r"in pytorch_model\.bin, a pickle, .* Load it with transformers and save it"),
        ("model.gguf", r"in model\.gguf, in the format of GGUF, .*Convert it to safetensors"),
        ("weights.safetensors", r"weights\.safetensors is none that transformers reads\. Rename it"),
        ("notes.md", r"no \*\.safetensors file here"),
    ],
)
def test_weights_in_another_file_are_refused_with_what_to_do(name, said, llama):
    (llama / FILE).rename(llama / name)
    with pytest.raises(CheckpointError, match=said):
        check_loads(str(llama), "model.name")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("model.layers.1.self_attn.rotary_emb.cos_cached", (1, 1, 64, 8)),
        ("model.embeddings.position_ids", (1, 64)),
        ("v_head.summary.weight", (1, 32)),
        ("v_head.summary.bias", (1,)),
    ],
)
def test_what_old_releases_saved_beside_the_weights_is_left_out(name, shape, llama):
    wanted = expected(llama)
    rewrite(llama, lambda s: {**s, name: torch.ones(shape)})
    assert torch.equal(found(llama), wanted) and torch.equal(expected(llama), wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_gpt2_as_on_the_hub(tied, tmp_path):
    folder = made("gpt2", tmp_path, tied=tied)
    rewrite(folder, lambda s: {k.removeprefix("transformer."): v for k, v in s.items()})
    mask = torch.ones(64, 64).tril()[None, None]
    for masks in ({}, {"h.0.attn.bias": mask.bool(), "h.1.attn.bias": mask, "h.0.attn.masked_bias": torch.ones(())}):
        rewrite(folder, lambda s, masks=masks: {**s, **masks})
        assert torch.equal(found(folder), expected(folder))
    sent = dict(weights_of(SavedCheckpoint(folder), Layout.of(skeleton(folder, torch.float32))).tensors())
    assert "h.0.attn.c_attn.weight" in sent and not sent.keys() & masks.keys()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_neox"])
def test_a_model_may_be_stored_as_it_is_held(family, tmp_path):
    model = SavedCheckpoint(made(family, tmp_path / "published"), torch.float32).model()
    model.save_pretrained(tmp_path / "held", save_original_format=False)
    published, held = (
        dict(weights_of(SavedCheckpoint(folder), Layout.of(skeleton(folder, torch.float32))).tensors())
        for folder in (tmp_path / "published", tmp_path / "held")
    )
    assert load_file(tmp_path / "held" / FILE).keys() != published.keys() == held.keys()
    assert torch.equal(found(tmp_path / "held"), expected(tmp_path / "published"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_neox"])
def test_what_is_missing_unknown_or_misshapen_is_named(family, tmp_path):
    folder = made(family, tmp_path / family)
    whole = load_file(folder / FILE)
    name = next(k for k in whole if "norm" in k or "ln" in k)
    expert = next((k for k in whole if "experts.1" in k), name)
    for change, said in (
        ({"model.layers.0.more.weight": torch.ones(3)}, r"tensors that the architecture lacks: model\.layers\.0\.more"),
        ({name: torch.ones(31)}, rf"{name}: the checkpoint has shape \(31,\)"),
        ({name: None}, f"lacks the tensor {name}"),
        ({expert: None}, "experts|lacks the tensor"),
    ):
        save_file({k: v for k, v in {**whole, **change}.items() if v is not None}, folder / FILE)
        with pytest.raises(CheckpointError, match=said) as refusal:
            check_loads(str(folder), "model.name")
        assert str(folder) in str(refusal.value)
        with pytest.raises(CheckpointError, match=said):
            SavedCheckpoint(folder).model()


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.uint8, torch.int8, torch.float8_e4m3fn], ids=["gptq", "nf4", "int8", "fp8"]
)
def test_packed_tensors_are_refused_as_quantized(dtype, llama):
    def pack(state):
        name = "model.layers.0.mlp.up_proj.weight"
        return {**state, name: state[name].to(dtype), f"{name}_scale": torch.ones(1)}

    rewrite(llama, pack)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight has the type \w+: the weights are quantized"):
        check_loads(str(llama), "model.name")


def test_a_tensor_in_two_shards_is_refused(shards):
    one, two = weight_files(shards)[:2]
    save_file({**load_file(two), **dict([next(iter(load_file(one).items()))])}, two, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{two.name}: holds .*, and so does {one.name}"):
        check_loads(str(shards), "model.name")


def test_tied_tensors_that_differ_are_untied_and_stay_so(tmp_path):
    folder = made("llama", tmp_path / "model")
    settle(folder, tie_word_embeddings=True)
    wanted = expected(folder)
    model = SavedCheckpoint(folder, torch.float32).model()
    assert torch.equal(logits(model), wanted)
    model.save_pretrained(tmp_path / "stage")
    assert not json.loads((tmp_path / "stage" / "config.json").read_text())["tie_word_embeddings"]
    assert torch.equal(logits(SavedCheckpoint(tmp_path / "stage").model()), wanted)
    assert torch.equal(expected(tmp_path / "stage"), wanted)
    layout = Layout.of(skeleton(folder, torch.float32))
    for checkpoint in (SavedCheckpoint(folder), TensorCheckpoint.of(model, folder)):
        with pytest.raises(CheckpointError, match="vLLM would use one for both"):
            weights_of(checkpoint, layout)


def test_a_model_in_memory_is_tied_again_for_the_next_weights(tmp_path):
    """An engine keeps one model for all checkpoints of an architecture."""
    tied, apart = made("llama", tmp_path / "tied", tied=True), made("llama", tmp_path / "apart", seed=1)
    model = skeleton(tied, torch.float32)
    for folder in (tied, apart, tied):
        load_state(model, SavedCheckpoint(folder).state())
        assert torch.equal(logits(model), expected(folder))


def test_equal_tensors_under_tied_names_stay_tied(tmp_path):
    folder = made("llama", tmp_path, tied=True)
    rewrite(folder, lambda s: {**s, "lm_head.weight": s["model.embed_tokens.weight"].clone()})
    model = SavedCheckpoint(folder).model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), expected(folder))


def test_an_untied_model_without_an_output_layer_is_refused(tmp_path):
    folder = made("llama", tmp_path, tied=True)
    settle(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lacks the tensor lm_head\.weight"):
        check_loads(str(folder), "model.name")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_found(bad, llama):
    check_finite(weight_files(llama))
    rewrite(llama, lambda s: s["model.layers.1.mlp.up_proj.weight"].view(-1)[7].fill_(bad) and None)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight .*\(1 of"):
        check_finite(weight_files(llama))


COUNTED = (
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "qwen.tiktoken",
    "source.spm",
    "added_tokens.json",
)
COUNTED += (
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
COUNTED += ("generation_config.json", "additional_chat_templates/tool.jinja", "tekken.json", FILE, "config.json")
COUNTED += ("emoji.json", "byte_maps.json", "word_shape.json", "prophetnet.tokenizer", "bpe.codes", "dict.txt")
STRAY = ("README.md", "trainer_state.json", "old.safetensors", "consolidated.safetensors", "optimizer.pt", "notes.txt")
STRAY += ("training_args.bin", "all_results.json", "model.safetensors.index.json")


@pytest.mark.parametrize("name", [*COUNTED, *STRAY])
def test_identity_covers_the_files_that_change_an_answer_and_no_others(name, llama):
    file = llama / name
    file.parent.mkdir(exist_ok=True)
    before = fingerprint(llama, weight_files(llama))
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
    assert (fingerprint(llama, weight_files(llama)) != before) == (name in COUNTED)


def test_every_file_that_a_tokenizer_of_transformers_reads_counts():
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    read = set()
    for name in set(TOKENIZER_MAPPING_NAMES.values()) - {None}:
        with contextlib.suppress(ImportError):  # of a library that is not installed
            read |= {*getattr(tokenizer_class_from_name(name), "vocab_files_names", {}).values()}
    assert {"vocab.json", "emoji.json", "prophetnet.tokenizer"} <= read
    for name in read:
        assert name.endswith(OPENED) and any(fnmatch(name, pattern) for pattern in TOKENIZER), name


def test_reading_leaves_the_random_state_alone(tmp_path):
    folder = made("qwen3_moe", tmp_path)
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    SavedCheckpoint(folder).model()
    assert torch.equal(torch.rand(3), drawn)


def test_transformers_itself_goes_on_with_random_weights_where_some_are_missing(llama):
    """So its word is not enough."""
    rewrite(llama, lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"})
    assert AutoModelForCausalLM.from_pretrained(llama) is not None
    with pytest.raises(CheckpointError, match="lacks"):
        SavedCheckpoint(llama).check()


@pytest.mark.parametrize("ends", ["deleted", "changed"])
def test_a_folder_is_read_whatever_became_of_another_with_the_same_config(ends, tmp_path):
    """Experts are converted; how is worked out once for each config."""
    first, second = (made("mixtral", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    found(first)
    if ends == "deleted":
        shutil.rmtree(first)
    else:
        settle(first, model_type="qwen2_moe")
    assert torch.equal(found(second), expected(second))
