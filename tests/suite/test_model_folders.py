"""Folders that mean no harm and look as if they did: all that is usual in them goes on working."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from tests.support.hostile_folders import (
    AUTO_MAP,
    CONFIG,
    TEMPLATE,
    TOKENIZER,
    adapter_folder,
    changed,
    content,
    copied,
    evaluated,
    model_folder,
    with_code,
)


def test_links_to_ordinary_files_are_what_the_hubs_cache_is_made_of(good, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).symlink_to(file)
    evaluated(folder, tmp_path)


@pytest.mark.parametrize("file", [CONFIG, TOKENIZER])
def test_a_known_model_with_a_leftover_auto_map_is_the_librarys_own(file, good, tmp_path):
    folder = copied(good, tmp_path / "model")
    with_code(folder)
    changed(folder / file, auto_map=AUTO_MAP)
    rows, wanted = (json.loads(evaluated(one, tmp_path, 0, "--json").stdout) for one in (folder, good))
    assert [(row["probe"], row["value"]) for row in rows] == [(row["probe"], row["value"]) for row in wanted]
    assert not (folder / "canary").exists()


def test_an_ordinary_adapter_of_every_kind_is_merged_as_peft_merges_it(good, tmp_path):
    from peft import PeftModel

    from suite.models.checkpoints import SavedCheckpoint
    from suite.models.encoding import Template
    from suite.models.loading import resolve_model
    from suite.models.settings import ModelSpec

    for number, more in enumerate(
        (
            {"lora_alpha": 12, "target_modules": "all-linear"},
            {"use_dora": True},
            {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
            {"modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"},
            {"bias": "lora_only", "lora_dropout": 0.1},
            {"target_modules": r".*layers\.1\.mlp\.(up|down)_proj", "init_lora_weights": "gaussian"},
            {"layers_to_transform": [1], "layers_pattern": "layers", "exclude_modules": ["v_proj"]},
            {"trainable_token_indices": {"embed_tokens": [3, 5]}},
            {"init_lora_weights": "pissa"},
            {"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]},
        )
    ):
        folder = adapter_folder(tmp_path / str(number), good, **more)
        found = resolve_model(ModelSpec(name=str(folder), template=Template.PLAIN), str(folder)).checkpoint.state()
        wanted = PeftModel.from_pretrained(SavedCheckpoint(good).model(), folder).merge_and_unload().state_dict()
        assert found.keys() == wanted.keys()
        assert all((found[name] == wanted[name]).all() for name in wanted), more


def test_a_config_that_asks_for_tuples_is_asked_for_names(good, tmp_path):
    folder = copied(good, tmp_path / "model")
    changed(folder / CONFIG, return_dict=False)
    evaluated(folder, tmp_path)


def test_a_checkpoint_in_shards_and_one_without_a_template(good, tmp_path):
    folder = model_folder(tmp_path / "model", template=None, shards=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    evaluated(folder, tmp_path)


FEATURES = """
{%- set ns = namespace(count=0) -%}
{{- strftime_now('%Y') ~ bos_token ~ eos_token }}
{% for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate: ' + message.role) }}
    {%- endif %}
    {%- if loop.index0 == 7 %}{% break %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message['content'] | trim }}{% endgeneration %}
        {%- continue %}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    <|{{ message.role }}|>{{ {'text': message.content.strip(), 'é': [1, none]} | tojson(indent=2) }}
{% endfor %}
{{ tools is none and documents is none }}{{ ns.count }}{% if add_generation_prompt %}<|assistant|>{% endif %}
"""


@pytest.mark.parametrize("template", [FEATURES, TEMPLATE], ids=["every feature", "plain"])
def test_the_rehearsal_renders_as_transformers_renders(template, good, tmp_path):
    from suite.models.encoding import Encoder, Template
    from suite.models.loading import load_tokenizer
    from suite.models.rehearsal import conversations, rendered
    from tasks.task import Style, Turn

    folder = copied(good, tmp_path / "model")
    content("chat_template.jinja", template)(folder)
    tokenizer = load_tokenizer(folder)
    given = {"tokenize": False, "strftime_now": datetime(2024, 7, 26).strftime}
    wanted = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=messages[-1]["role"] == "user", **given)
        for messages in conversations()
    ]
    found = rendered(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
    assert [one["text"] for one in found["rendered"]] == wanted
    encoder = Encoder(tokenizer, Template.CHAT)
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **given)
    assert list(encoder.encode("c", "", Style.QUESTION, (Turn("a", "b"),)).prompt) == tokenizer(text)["input_ids"]


def test_a_template_that_knows_no_second_turn_serves_one(good, tmp_path):
    folder = copied(good, tmp_path / "model")
    content("chat_template.jinja", "{% if messages[1:] %}{{ raise_exception('one') }}{% endif %}x" + TEMPLATE)(folder)
    evaluated(folder, tmp_path)
