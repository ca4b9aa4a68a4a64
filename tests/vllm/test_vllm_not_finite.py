"""Checkpoints whose weights or logits are NaN or infinite: vLLM says nothing, and what comes after is unharmed."""

from __future__ import annotations

import math

import pytest
import torch

from suite.engines import Job, TransformersEngine
from suite.models.checkpoints import SavedCheckpoint, TensorCheckpoint
from tasks.scoring import score

UP_PROJ, V_PROJ, NORM = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.norm.weight",
)
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def changed(folder, change) -> TensorCheckpoint:
    state = {name: tensor.clone() for name, tensor in SavedCheckpoint(folder).state().items()}
    change(state)
    return TensorCheckpoint(state, folder)


def one(name, value):
    return lambda state: state[name].view(-1)[7].fill_(value)


def beyond_the_dtype(state):
    """Finite weights, and a forward pass that overflows."""
    state[NORM].fill_(3e38)


def one_token(encoder, value):
    """Only prompts with an `8` are affected."""
    (number,) = encoder.tokenizer("8", add_special_tokens=False)["input_ids"]
    return lambda state: state[EMBEDDINGS][number].fill_(value)


def samples(engine, checkpoint, probes):
    (found,) = engine.submit([Job("x", checkpoint, probes)])
    assert found.error is None
    return found.samples


def said(samples):
    """What was generated, and which texts have numbers: where in a text NaN begins is the implementation's."""

    def whole(numbers):
        return numbers and not any(map(math.isnan, numbers))

    return {
        name: [(s.generated, s.sampled, whole(s.token_logprobs), s.token_correct, whole(s.choice_logprobs)) for s in of]
        for name, of in samples.items()
    }


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    "change",
    [one(UP_PROJ, math.nan), one(V_PROJ, math.inf), one(HEAD, math.nan), beyond_the_dtype],
    ids=["nan", "inf", "head", "overflow"],
)
def test_a_model_that_is_not_finite_says_nothing_and_spoils_nothing(change, alone, untied, engines, probes, pids):
    engine, good = engines(alone=alone), SavedCheckpoint(untied(0))
    before = samples(engine, good, probes)
    running = pids()
    found = samples(engine, changed(untied(0), change), probes)
    for probe in probes:
        for metric in probe.metrics:
            number = score(metric, found[probe.name])
            assert number.value is None and number.reason
    assert samples(engine, good, probes) == before and pids() == running


@pytest.mark.parametrize("blocks", [None, pytest.param(16, marks=pytest.mark.slow)], ids=["large", "small"])
@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_only_the_prompts_that_are_affected_have_no_answer(value, blocks, untied, engines, encoder, probes):
    """In a small cache, blocks with NaN are used again while others are still being answered."""
    plain = TransformersEngine(encoder, dtype="float32", device=torch.device("cpu"))
    checkpoint = changed(untied(0), one_token(encoder, value))
    wanted = said(samples(plain, checkpoint, probes))
    assert 0 < sum(generated is None for generated, *_ in wanted["text"]) < len(wanted["text"])
    engine = engines(alone=True, **({"cache_gib": blocks * 16384 / 2**30} if blocks else {}))
    assert said(samples(engine, checkpoint, probes)) == wanted
    good = SavedCheckpoint(untied(0))
    assert said(samples(engine, good, probes)) == said(samples(plain, good, probes))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_says_nothing_either(dtype, untied, engines, probes):
    def too_large(state):
        state.update({name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()})
        state[NORM].fill_(torch.finfo(getattr(torch, dtype)).max)
        state[HEAD].fill_(torch.finfo(getattr(torch, dtype)).max)

    found = samples(engines(dtype, alone=True), changed(untied(0), too_large), probes)
    assert {score(metric, found[probe.name]).value for probe in probes for metric in probe.metrics} == {None}


@pytest.mark.slow
def test_an_adapter_that_is_not_finite_says_nothing(untied, engines, probes, tmp_path):
    from peft import LoraConfig, get_peft_model

    from suite.models.checkpoints import LoraCheckpoint

    base = SavedCheckpoint(untied(0))
    model = get_peft_model(base.model(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(math.nan)
    model.save_pretrained(tmp_path)
    engine = engines()
    before = samples(engine, base, probes)
    found = samples(engine, LoraCheckpoint(base, tmp_path), probes)
    assert {score(metric, found[probe.name]).value for probe in probes for metric in probe.metrics} == {None}
    assert samples(engine, base, probes) == before
