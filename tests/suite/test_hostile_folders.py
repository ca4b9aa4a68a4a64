"""Folders that mean harm: none is executed, none hangs or crashes the command, and each is refused in a sentence."""

from __future__ import annotations

import io
import json
import os
import pty
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.hostile_folders import (
    ADAPTER,
    AUTO_MAP,
    CONFIG,
    FEW,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    changed,
    content,
    copied,
    evaluated,
    replaced,
    safetensors,
    sparse,
    with_code,
)
from tests.support.small import SMALL

SOON = 30
"""Seconds; the slowest refusal is that of a template that computes for three, on a machine that is busy."""


def refused(folder, tmp_path, *more) -> str:
    """What the command says about a folder: one sentence, soon."""
    begun = time.monotonic()
    said = None
    for code in (2, 1):
        with suppress(AssertionError):
            said = evaluated(folder, tmp_path, code, *more)
            break
    assert said is not None, evaluated(folder, tmp_path, 2, *more)
    assert time.monotonic() - begun < SOON
    assert "Traceback" not in said.stderr + said.stdout
    assert str(folder) in said.stderr
    assert said.stderr.startswith("regrade: ")
    assert not list(folder.parent.rglob("canary"))
    return said.stderr


def bound_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)  # a socket's path may have a hundred characters
        one.bind(file.name)


def link_to(place: str):
    return lambda file: file.symlink_to(place)


NO_FILES = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "socket": bound_socket,
    "dangling": link_to("/nowhere/at/all"),
    "device": link_to("/dev/zero"),
    "machinery": link_to("/proc/kmsg"),
    "itself": lambda file: file.symlink_to(file.name),
}
OPENED = (CONFIG, TOKENIZER, VOCABULARY, WEIGHTS, "chat_template.jinja", "special_tokens_map.json", "vocab.txt")


@pytest.mark.parametrize("file", OPENED)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_ordinary_file_is_never_opened(file, kind, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    replaced(file, NO_FILES[kind])(folder)
    assert file in refused(folder, tmp_path)


@pytest.mark.parametrize("file", [*OPENED, ADAPTER, "adapter_model.safetensors"])
def test_a_terabyte_of_nothing_is_not_read(file, good, good_adapter, tmp_path):
    folder = copied(good_adapter if "adapter" in file else good, tmp_path / "model")
    replaced(file, sparse(10**12))(folder)
    assert file in refused(folder, tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(good, tmp_path):
    folder = copied(good, tmp_path / "model")
    (folder / VOCABULARY).chmod(0)
    assert "Permission denied" in refused(folder, tmp_path)


NO_SETTINGS = {
    "list": "[]",
    "number": "5",
    "null": "null",
    "empty": "",
    "utf-16": b"\xff\xfe{\0}\0",
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep mapping": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "twice": '{"model_type": "llama", "model_type": "bert"}',
    "digits": '{"hidden_size": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("file", [CONFIG, TOKENIZER, VOCABULARY, ADAPTER])
@pytest.mark.parametrize("kind", NO_SETTINGS)
def test_what_is_no_mapping_of_settings_is_said(file, kind, good, good_adapter, tmp_path):
    folder = copied(good_adapter if file == ADAPTER else good, tmp_path / "model")
    content(file, NO_SETTINGS[kind])(folder)
    assert file in refused(folder, tmp_path)


SIZES = "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size max_position_embeddings".split()


@pytest.mark.parametrize("key", [*SIZES, "num_key_value_heads", "head_dim"])
def test_no_size_is_anything_but_a_number_that_a_model_can_have(key, good, tmp_path):
    for value in (-1, 0, True, "many", 10**12, 1.5, []):
        folder = copied(good, tmp_path / str(value))
        changed(folder / CONFIG, **{key: value})
        said = refused(folder, tmp_path)
        assert key in said and CONFIG in said


CONFIGS = {
    "more layers than there are tensors": ({"num_hidden_layers": 1500}, "more tensors than the 20"),
    "wider than its weights": ({"hidden_size": 2**24}, "more numbers than the 20"),
    "a larger vocabulary than its weights": ({"vocab_size": 2**24}, "more numbers than the 20"),
    "heads that do not divide the width": ({"num_attention_heads": 3}, "num_attention_heads|attention heads"),
    "heads that are not shared evenly": ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
    "no type": ({"model_type": None}, "model_type"),
    "a type that is not known": ({"model_type": "evil"}, "model_type"),
    "a type that is no text": ({"model_type": ["llama"]}, "model_type"),
    "a type that is no language model": ({"model_type": "vit"}, "no causal language model"),
    "attention from the hub": ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation"),
    "attention of a part": ({"text_config": {"_attn_implementation": "evil/kernel"}}, "text_config._attn_impl"),
    "experts from the hub": ({"experts_implementation": "evil/kernel"}, "experts_implementation"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "a speculator": ({"speculators_config": {"verifier": {"name_or_path": "x/y"}}}, "speculators_config"),
    "another config": ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
    "a dtype that is a function": ({"dtype": "load"}, "dtype"),
    "a method as a setting": ({"get_text_config": 5}, "get_text_config"),
    "labels by the million": ({"num_labels": 2**24}, "num_labels"),
    "a layer of its own size": ({"per_layer_config": {"0": {"hidden_size": 10**9}}}, "per_layer_config.0.hidden_size"),
    "a tokenizer that is a model": ({"tokenizer_class": "AutoModelForCausalLM"}, "tokenizer_class"),
    "an activation that is not known": ({"hidden_act": "evil"}, "evil"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_asks_for_what_no_model_is_is_refused(kind, good, tmp_path):
    values, named = CONFIGS[kind]
    folder = copied(good, tmp_path / "model")
    changed(folder / CONFIG, **values)
    said = refused(folder, tmp_path)
    assert any(one in said for one in named.split("|")), said


TOKENIZERS = {
    "a model": {"tokenizer_class": "AutoModelForCausalLM"},
    "the one that chooses": {"tokenizer_class": "AutoTokenizer"},
    "a pipeline": {"tokenizer_class": "pipeline"},
    "no name": {"tokenizer_class": ["x"]},
    "another folder's vocabulary": {"vocab_file": "/etc/passwd"},
    "arguments": {"init_inputs": ["/etc/passwd"]},
    "trust": {"trust_remote_code": True},
    "another file": {"fast_tokenizer_files": ["tokenizer./../x.json"]},
    "a token with a huge id": {"added_tokens_decoder": {"99999999999": {"content": "a"}}},
    "a token that is a number": {"eos_token": 5},
    "no token that ends": {"eos_token": None},
    "a length that is no number": {"model_max_length": "x"},
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused(kind, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    changed(folder / TOKENIZER, **TOKENIZERS[kind])
    refused(folder, tmp_path)


BOMB = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 3000}
VOCABULARIES = {
    "a normalizer that makes gigabytes": {"normalizer": {"type": "Sequence", "normalizers": [BOMB] * 3}},
    "a normalizer that waits for a word": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "Where"}, "content": "Z" * 200},
                *[{"type": "Replace", "pattern": {"String": "Z"}, "content": "Z" * 200}] * 3,
            ],
        }
    },
    "a pattern that does not end": {
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": "(a+)+b|(a|a)*c"}, "behavior": "Isolated", "invert": False,
        },
    },
    "merges that do not fit": {"model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": ["a a"]}},
    "a vocabulary without a token": {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}},
}  # fmt: skip


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_tokenizer_is_first_tried_where_it_can_do_no_harm(kind, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    changed(folder / VOCABULARY, **VOCABULARIES[kind])
    assert VOCABULARY in refused(folder, tmp_path)


ONE = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
DAMAGED = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 4,
    "a header of exabytes": (2**63).to_bytes(8, "little") + b"{}",
    "overlapping tensors": safetensors({"a": ONE, "b": {**ONE, "data_offsets": [8, 24]}}, b"x" * 24),
    "more than there is": safetensors({"a": {**ONE, "shape": [10**12]}}, b"x" * 16),
    "shapes beyond counting": safetensors({"a": {**ONE, "shape": [2**63, 2**63], "data_offsets": [0, 0]}}),
    "a header that is a list": safetensors(b"[]"),
    "no tensors": safetensors({}),
    "another model's": safetensors({"a": ONE}, b"x" * 16),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_weights_that_are_none_are_refused(kind, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    content(WEIGHTS, DAMAGED[kind])(folder)
    refused(folder, tmp_path)


def test_weights_that_no_memory_holds_are_not_read(good, tmp_path):
    """Four terabytes that take no room on the disk."""
    folder, numbers = copied(good, tmp_path / "model"), 2**40
    one = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    content(WEIGHTS, safetensors({"a": one}))(folder)
    with open(folder / WEIGHTS, "r+b") as stream:
        stream.truncate((folder / WEIGHTS).stat().st_size + 4 * numbers)
    assert "GiB" in refused(folder, tmp_path)


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd.safetensors", 5])
def test_an_index_leads_to_no_other_folder(shard, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    content("model.safetensors.index.json", json.dumps({"weight_map": {"a": shard}}))(folder)
    assert "weight_map" in refused(folder, tmp_path)


TEMPLATES = {
    "a loop": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
    "a loop in a second turn": (
        "{% if messages | length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}hello",
        "seconds",
    ),
    "a power": ("{{ 10 ** (10 ** 9) }}", "seconds"),
    "memory": ("{{ 'x' * 10 ** 10 }}", "MiB of memory"),
    "gigabytes of text": ("{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}", "1000000 characters"),
    "an error": ("{{ raise_exception('not today') }}", "not today"),
    "no template": ("{% for %}", "TemplateSyntaxError"),
    "a class": ("{{ ''.__class__ }}", "__class__"),
    "the globals": ("{{ cycler.__init__.__globals__.os.system('touch canary') }}", "__init__"),
    "a filter's attribute": ("{{ '' | attr('__class__') }}", "__class__"),
    "a format's attribute": ("{{ '{0.__class__}'.format(1) }}", "__class__"),
    "a macro of itself": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    "another file": ("{% include '/etc/passwd' %}", "TypeError"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_is_first_rendered_where_it_can_do_no_harm(kind, good, tmp_path):
    template, named = TEMPLATES[kind]
    folder = copied(good, tmp_path / "model")
    content("chat_template.jinja", template)(folder)
    said = refused(folder, tmp_path)
    assert named in said and "Use model.template=plain" in said, said
    if kind == "a loop":
        evaluated(folder, tmp_path, 0, "--template", "plain")


ADAPTERS = {
    "r": 10**12,
    "rank_pattern": {"q_proj": 10**6},
    "lora_alpha": "x",
    "peft_type": "EVIL",
    "task_type": "EVIL",
    "target_modules": r"([a-z_.0-9]+)+!",
    "exclude_modules": "((",
    "megatron_config": {"megatron_core": "evil"},
    "layer_replication": [[0, 10**9]],
    "init_lora_weights": "pissa_niter_999999999",
    "trainable_token_indices": [10**12],
    "arrow_config": {"a": 1},
    "corda_config": {"cache_file": "/etc/passwd"},
    "base_model_name_or_path": "a\0b",
}


@pytest.mark.parametrize("key", ADAPTERS)
def test_an_adapter_says_nothing_that_peft_would_act_on(key, good_adapter, tmp_path):
    folder = copied(good_adapter, tmp_path / "adapter")
    changed(folder / ADAPTER, **{key: ADAPTERS[key]})
    assert key in refused(folder, tmp_path) or key in ("r", "rank_pattern", "task_type")


def test_an_adapter_of_itself_and_one_with_a_pickle(good_adapter, tmp_path):
    itself = copied(good_adapter, tmp_path / "itself")
    changed(itself / ADAPTER, base_model_name_or_path=str(itself))
    assert "an adapter of an adapter" in refused(itself, tmp_path)
    pickled = copied(good_adapter, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refused(pickled, tmp_path)


CODE = {
    "config": {CONFIG: {"auto_map": AUTO_MAP, "model_type": "evil"}},
    "tokenizer": {TOKENIZER: {"auto_map": AUTO_MAP, "tokenizer_class": "EvilTokenizer"}},
    "part": {CONFIG: {"vision_config": {"model_type": "vit", "auto_map": AUTO_MAP}}},
    "class": {CONFIG: {"auto_map": AUTO_MAP}, TOKENIZER: {"tokenizer_class": "AutoModelForTextEncoding"}},
}


def evil_folder(kind: str, good: Path, good_adapter: Path, tmp_path: Path) -> Path:
    """A folder with code, and what names it; or an adapter with code, or of a model with code."""
    folder = copied(good if kind in CODE else good_adapter, tmp_path / "evil")
    if kind == "base":
        base = copied(good, tmp_path / "base")
        changed(base / CONFIG, auto_map=AUTO_MAP, model_type="evil")
        with_code(base)
        changed(folder / ADAPTER, base_model_name_or_path=str(base))
        return folder
    with_code(folder)
    for file, values in CODE.get(kind, {}).items():
        changed(folder / file, **values)
    if kind == "adapter":
        evil = {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}, "megatron_core": "evil"}
        changed(folder / ADAPTER, **evil, megatron_config={"a": 1})
    return folder


@pytest.mark.parametrize("kind", [*CODE, "adapter", "base"])
def test_a_yes_executes_nothing(kind, good, good_adapter, tmp_path, monkeypatch):
    """transformers asks whether to run the folder's code, and does so after a yes."""
    folder = evil_folder(kind, good, good_adapter, tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    refused(folder, tmp_path)
    assert sys.stdin.tell() == 0  # nobody asked


def test_a_yes_on_a_terminal_executes_nothing(good, good_adapter, tmp_path):
    folder = evil_folder("tokenizer", good, good_adapter, tmp_path)
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\n")
    command = [sys.executable, "-c", "from suite.cli import main; main()", "eval", folder, *FEW, "--store", tmp_path]
    with open(tmp_path / "said", "w") as said:
        done = subprocess.run(command, stdin=theirs, stdout=theirs, stderr=said, cwd=folder, timeout=120, check=False)
    os.close(ours)
    os.close(theirs)
    text = (tmp_path / "said").read_text()
    assert done.returncode == 2, text
    assert str(folder) in text and "Traceback" not in text
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("verb", ["eval", "attack", "run", "validate"])
def test_every_verb_looks_at_a_folder_first(verb, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    content("chat_template.jinja", TEMPLATES["a class"][0])(folder)
    store = ("--store", tmp_path / "store")
    words = (verb, folder, *FEW[:4], *store)
    if verb in ("run", "validate"):
        spec = tmp_path / "spec.yaml"
        given = {"target": str(folder), "retrained": str(good)}
        spec.write_text(json.dumps({**SMALL, "model": {"name": str(good)}, "anchors": given}))
        words = (verb, spec, *(store if verb == "run" else ()))
    done = processes.start(*words).wait(120)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
