"""Attacks that a model's architecture does not support are refused before anything is trained, in one sentence."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from suite.attacks import attack
from suite.attacks.base import Subject
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.models.checkpoints import SavedCheckpoint
from suite.models.loading import train_tokenizer
from suite.models.outline import outline_of
from suite.models.settings import TinyModel
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.trials.preflight import preflight
from tasks import TASKS
from tests.support.command import regrade
from tests.support.families import made
from tests.support.small import SMALL

FORMATS = [
    {"name": "rtn", "bits": 4},
    {"name": "gptq", "bits": 4, "samples": 4},
    {"name": "awq", "bits": 4, "samples": 4},
    {"name": "prune", "by": "magnitude", "sparsity": 0.5},
    {"name": "prune", "by": "wanda", "sparsity": 0.5, "samples": 4},
    {"name": "noise", "sigma": 0.1},
]
BEYOND = [{"name": "logit_lens", "layers": [0, 9]}, {"name": "refusal_direction", "layer": 9, "samples": 2}]
DIRECTIONS = [{"name": "logit_lens", "layers": [1]}, {"name": "refusal_direction", "layer": 0, "samples": 2}]
LORA = {"name": "relearn", "samples": 4, "steps": 1, "lr": 1e-3, "adapter": "lora"}
XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 16}


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(TASKS["pocket"].build(), TinyModel(vocabulary=512))


def folder_of(kind: str, folder, words, **settings):
    common = {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    if kind == "xlnet":
        config = transformers.XLNetConfig(**{**XLNET, **common, "bos_token_id": 1})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        made(kind, folder, settings={**common, **settings})
    words.save_pretrained(folder)
    return folder


def refused(name: str, *attacks: dict) -> str:
    spec = trial({**SMALL, "model": {**SMALL["model"], "name": name} if name == "tiny" else {"name": name}})
    measure = MeasureSpec(attacks=attacks, limit=2, match=None)
    with pytest.raises(SpecError) as error:
        preflight([spec], measure, RuntimeSpec())
    assert preflight([spec], MeasureSpec(attacks=(), limit=2, match=None), RuntimeSpec())
    return str(error.value)


@pytest.mark.parametrize("settings", FORMATS, ids=lambda s: s.get("by", s["name"]))
def test_a_format_for_matrices_that_are_not_known(settings, words, tmp_path):
    said = refused(str(folder_of("xlnet", tmp_path / "m", words)), settings)
    assert said.startswith(f"measure.attacks: {settings['name']} would change ")
    assert "XLNetLMHeadModel" in said and "rel_attn" in said and attack(settings).name in said
    assert "\n" not in said and "Leave the attack out" in said


@pytest.mark.parametrize("settings", BEYOND, ids=lambda s: s["name"])
def test_a_block_that_the_model_does_not_have(settings):
    assert f"model has 1 blocks. Use 0 to {settings['name'] == 'logit_lens':d}" in refused("tiny", settings)


@pytest.mark.parametrize("settings", DIRECTIONS, ids=lambda s: s["name"])
@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("opt", {"max_position_embeddings": 256, "do_layer_norm_before": False}, "norms the residual stream itself"),
        ("mamba", {}, "mixer"),
    ],
)
def test_a_stream_that_is_written_otherwise(settings, kind, more, why, words, tmp_path):
    assert why in refused(str(folder_of(kind, tmp_path / "m", words, **more)), settings)


def test_an_adapter_of_layers_that_the_model_does_not_have(words, tmp_path):
    folder = folder_of("gpt2", tmp_path / "m", words, n_positions=256)
    assert "GPT2LMHeadModel (gpt2) has no nn.Linear" in refused(str(folder), LORA)


def test_what_changes_nothing_can_be_carried_out_on_anything(words, tmp_path):
    folder = folder_of("xlnet", tmp_path / "m", words)
    nothing = [
        {"name": "rtn", "bits": 32},
        {"name": "noise", "sigma": 0.0},
        {"name": "refusal_direction", "layer": 9, "samples": 2, "strength": 0.0},
        {**LORA, "steps": 0},
    ]
    spec = trial({**SMALL, "model": {"name": str(folder)}})
    assert preflight([spec], MeasureSpec(attacks=nothing, limit=2, match=None), RuntimeSpec())


@pytest.mark.parametrize("verb", ["validate", "run", "sweep"])
def test_every_verb_says_it_before_work_begins(verb, words, tmp_path):
    folder = folder_of("xlnet", tmp_path / "m", words)
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({**SMALL, "model": {"name": str(folder)}, "measure": {"attacks": FORMATS[:1]}}))
    store = [] if verb == "validate" else ["--store", tmp_path / "store"]
    said = regrade(verb, spec, *store, code=2).stderr
    assert "rtn would change" in said and "Traceback" not in said
    assert not list((tmp_path / "store").rglob("*manifest*"))


def test_of_a_tasks_own_set_the_other_attacks_are_carried_out(tmp_path):
    """Pocket's removes a direction after block 1, and this model has one block, number 0."""
    told: list[str] = []
    assert preflight([trial(SMALL), trial({**SMALL, "seed": 1})], MeasureSpec(limit=2), RuntimeSpec(), tell=told.append)
    (note,) = told
    assert "layer=1: the model has 1 blocks" in note and "refusal_direction" in note and "will have failed" in note


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repetition_penalty": 1.05, "temperature": 0.7, "do_sample": True}, "repetition_penalty=1.05: not read"),
        ({"no_repeat_ngram_size": 3, "suppress_tokens": [5]}, "no_repeat_ngram_size=3, suppress_tokens=a list"),
        ({"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0, "top_k": 20, "guidance_scale": None}, None),
    ],
)
def test_what_a_folder_says_about_decoding_and_is_not_read_is_said(settings, named, words, tmp_path):
    folder = folder_of("llama", tmp_path / "m", words, max_position_embeddings=256)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": words.eos_token_id, **settings}))
    told: list[str] = []
    spec = trial({**SMALL, "model": {"name": str(folder)}})
    preflight([spec], MeasureSpec(attacks=(), limit=2, match=None), RuntimeSpec(), tell=told.append)
    assert len(told) == bool(named) and all(named in note and str(folder) in note for note in told)


def test_a_checkpoint_is_not_attacked_by_what_does_not_apply(words, tmp_path):
    folder = folder_of("xlnet", tmp_path / "m", words)
    said = regrade("attack", folder, "--task", "pocket", "--attack", "rtn[bits=4]", "--store", tmp_path, code=2).stderr
    assert "rtn would change" in said


def test_layers_outside_the_blocks_are_edited_by_the_formats_that_deployed_ones_edit_them_in(scene, tmp_path):
    """OPT's `project_in` and `project_out`: bitsandbytes replaces every nn.Linear but the output layer, GPTQ and AWQ
    those of the blocks."""
    settings = {"word_embed_proj_dim": 16, "max_position_embeddings": 1024}
    folder = made("opt", tmp_path / "m", settings=settings | {"vocab_size": len(scene[1].encoder.tokenizer)})
    subject = Subject(SavedCheckpoint(folder, torch.float32), scene[0].probes)
    before = subject.checkpoint.state()
    projections = {"model.decoder.project_in.weight", "model.decoder.project_out.weight"}
    assert projections <= outline_of(folder).matrices.keys()
    for of in FORMATS:
        ((_, attacked),) = attack(of).apply(subject, scene[1])
        after = attacked.checkpoint.state()
        changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        blocks = {name for name in outline_of(folder).matrices if ".layers." in name}
        everywhere = of["name"] in ("rtn", "noise") or of.get("by") == "magnitude"
        assert changed == blocks | (projections if everywhere else set()), of
