"""Folders that were changed at random: what the command says about them is no crash, whatever was changed."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.hostile_folders import (
    ADAPTER,
    CONFIG,
    TOKENIZER,
    VOCABULARY,
    WEIGHTS,
    changed,
    content,
    copied,
)

SOON = 30
"""Seconds, on a machine that is busy."""


HOSTILE = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 2**16, 10**12, 10**400, 1e308, float("nan"), "", "x" * 10_000, "a\0b", "../..", "/dev/zero"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner), max_leaves=6
    ),
    st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=3),
)


def looked_at(folder: Path) -> None:
    """What the command does with a folder before it measures anything, ended by an error that is said to the user."""
    from suite.config.errors import CheckpointError, RequestError
    from suite.models.loading import resolve_model
    from suite.models.settings import ModelSpec

    begun = time.monotonic()
    with suppress(RequestError, CheckpointError):
        resolve_model(ModelSpec(name=str(folder)), str(folder)).checkpoint.model()
    assert time.monotonic() - begun < SOON
    assert not list(folder.rglob("canary"))


KEYS = {
    CONFIG: "hidden_size num_hidden_layers rope_parameters model_type architectures auto_map dtype hidden_act id2label "
    "tie_word_embeddings pad_token_id layer_types text_config rms_norm_eps head_dim",
    TOKENIZER: "tokenizer_class eos_token model_max_length added_tokens_decoder extra_special_tokens auto_map backend "
    "padding_side chat_template vocab_file",
    ADAPTER: "r target_modules lora_alpha peft_type task_type bias rank_pattern alpha_pattern modules_to_save use_dora "
    "layers_to_transform base_model_name_or_path megatron_config init_lora_weights",
}
FEWER = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@FEWER
@given(st.data())
def test_no_value_of_a_setting_crashes_the_command(good, good_adapter, tmp_path_factory, data):
    file = data.draw(st.sampled_from(sorted(KEYS)))
    folder = copied(good_adapter if file == ADAPTER else good, tmp_path_factory.mktemp("changed") / "model")
    key, value = data.draw(st.sampled_from(KEYS[file].split())), data.draw(HOSTILE)
    changed(folder / file, **{key: value})
    looked_at(folder)


@FEWER
@given(st.data())
def test_no_damage_to_a_file_crashes_the_command(good, good_adapter, tmp_path_factory, data):
    file = data.draw(st.sampled_from([CONFIG, TOKENIZER, VOCABULARY, WEIGHTS, ADAPTER, "adapter_model.safetensors"]))
    folder = copied(good_adapter if "adapter" in file else good, tmp_path_factory.mktemp("damaged") / "model")
    written = bytearray((folder / file).read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(written), 4096) - 1), max_size=4)):
        written[place] ^= data.draw(st.integers(1, 255))
    content(file, bytes(written[: data.draw(st.integers(0, len(written)) | st.just(len(written)))]))(folder)
    looked_at(folder)
