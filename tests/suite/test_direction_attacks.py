"""Attacks on the residual stream against transformers' hidden states, the final norm and the output layer by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from suite.attacks import AttackContext, Subject, attack
from suite.attacks.weights.residual import block_writers, embedding_writers, outline, without
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.models.checkpoints import TensorCheckpoint
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from tasks import TASKS
from tasks.task import Split, Style
from tests.support.small import SMALL

BLOCKS = 3
COMMON = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 32,  # square, so that no shape tells inputs from outputs
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 512, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128, "n_inner": 32}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED,
    "olmo2": {**COMMON, "num_key_value_heads": 2},
    "phi": COMMON,
    "phi3": COMMON,
    "gpt2": {**GPT2, "bos_token_id": 1, "eos_token_id": 1},
    "gptj": {**GPT2, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 1},
    "gpt_neox": COMMON,
    "opt": {**COMMON, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "falcon": COMMON,
    "stablelm": {**COMMON, "num_key_value_heads": 2},
    "mixtral": {**GROUPED, "num_local_experts": 2, "intermediate_size": 48},
}


@pytest.fixture(scope="module")
def context(warm_store) -> AttackContext:
    task = TASKS["pocket"].build()
    both = prepare_anchors(trial(SMALL), task, Store(warm_store).stages, RuntimeSpec())
    cpu = torch.device("cpu")
    return AttackContext(
        TransformersEngine(both.base.encoder, dtype="float32", device=cpu), both.base.encoder, task, 0, cpu
    )


def made(kind: str, folder, **changes) -> TensorCheckpoint:
    """A model of this kind with random weights, norms and biases among them."""
    config = AutoConfig.for_model(kind, **{**FAMILIES[kind], **changes})
    config.save_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    return TensorCheckpoint.of(model, folder)


def subject_of(checkpoint: TensorCheckpoint, context: AttackContext) -> Subject:
    return Subject(checkpoint, context.task.probes_of(Split.TEST))


def stream(model: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream: embeddings, then after each block; the last one before the norm, which is hooked."""
    last: list[torch.Tensor] = []
    hook = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == BLOCKS)[
        -1
    ].register_forward_hook(
        lambda block, inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    hook.remove()
    return [*states[:-1], last[0]]


def last_norm(model: nn.Module) -> nn.Module:
    names = ("model.norm", "transformer.ln_f", "model.final_layernorm", "gpt_neox.final_layer_norm")
    for name in (*names, "model.decoder.final_layer_norm"):
        try:
            return model.get_submodule(name)
        except AttributeError:
            continue
    raise AssertionError("a norm comes before the output layer")


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_lens_reads_what_the_last_norm_and_the_head_make_of_the_inner_states(kind, tmp_path, context):
    checkpoint = made(kind, tmp_path)
    plain = checkpoint.model()
    ids = torch.arange(2, 22).reshape(2, 10)
    inner = stream(plain, ids)
    found = dict(attack({"name": "logit_lens", "layers": [0, 1, 2, 3]}).apply(subject_of(checkpoint, context), context))
    assert list(found) == [0, 1, 2, 3]
    assert found[BLOCKS].checkpoint is checkpoint
    for kept, attacked in found.items():
        with torch.no_grad():
            logits = plain.get_output_embeddings()(last_norm(plain)(inner[kept]))
            if cap := getattr(plain.config, "final_logit_softcapping", None):
                logits = cap * torch.tanh(logits / cap)
            got = attacked.checkpoint.model()(input_ids=ids).logits
        torch.testing.assert_close(got.log_softmax(-1), logits.log_softmax(-1), rtol=0, atol=1e-5)


def direction_by_hand(checkpoint, context, layer: int, samples: int) -> torch.Tensor:
    """Difference of means of transformers' hidden states at the last tokens of prompts of the other split."""
    model, draw, means = checkpoint.model(), random.Random("0:0"), []
    for names in (("forget_qa", "forget_text", "forget_choice"), ("retain_qa", "retain_text", "retain_choice")):
        probes = [p for p in context.task.probes_of(Split.DEV) if p.name in names]
        items = [item for name in names for p in probes if p.name == name for item in p.items]
        states = []
        for item in draw.sample(items, samples):
            with torch.no_grad():
                ids = torch.tensor([context.encoder.prompt(item)])
                states.append(model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0, -1])
        means.append(torch.stack(states).mean(0))
    difference = means[0] - means[1]
    return difference / difference.norm()


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_ablated_model_never_writes_along_the_direction(kind, tmp_path, context):
    checkpoint = made(kind, tmp_path)
    r = direction_by_hand(checkpoint, context, layer=1, samples=5)
    settings_ = {"name": "refusal_direction", "layer": 1, "samples": 5}
    ((_, attacked),) = attack(settings_).apply(subject_of(checkpoint, context), context)
    ids = torch.arange(2, 22).reshape(2, 10)
    before, after = stream(checkpoint.model(), ids), stream(attacked.checkpoint.model(), ids)
    for place, (was, now) in enumerate(zip(before, after, strict=True)):
        assert (was @ r).abs().max() > 1e-2, place
        assert (now @ r).abs().max() < 1e-5 * max(1.0, float(now.norm(dim=-1).max())), place


def test_the_edit_is_the_published_projection(tmp_path, context):
    """W <- W - r r^T W for matrices that write, and nothing else changes; half of it at half the strength."""
    checkpoint = made("llama", tmp_path, tie_word_embeddings=False)
    r = direction_by_hand(checkpoint, context, layer=0, samples=4)
    for strength in (1.0, 0.5):
        settings_ = {"name": "refusal_direction", "layer": 0, "samples": 4, "strength": strength}
        ((_, attacked),) = attack(settings_).apply(subject_of(checkpoint, context), context)
        after = attacked.checkpoint.state()
        keep = torch.eye(32) - strength * torch.outer(r, r)
        for name, weight in checkpoint.state().items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.testing.assert_close(after[name], keep @ weight, rtol=0, atol=1e-5)
            elif name == "model.embed_tokens.weight":
                torch.testing.assert_close(after[name], weight @ keep, rtol=0, atol=1e-5)
            else:
                assert torch.equal(after[name], weight), name


def test_tied_embeddings_stay_tied(tmp_path, context):
    checkpoint = made("llama", tmp_path, tie_word_embeddings=True)
    ((_, attacked),) = attack({"name": "refusal_direction", "layer": 0, "samples": 2}).apply(
        subject_of(checkpoint, context), context
    )
    after = attacked.checkpoint.state()
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], checkpoint.state()["lm_head.weight"])


def test_half_precision_weights_keep_their_dtype(tmp_path, context):
    full = made("llama", tmp_path)
    checkpoint = TensorCheckpoint({n: w.bfloat16() for n, w in full.state().items()}, full.architecture)
    for settings_ in (
        {"name": "refusal_direction", "layer": 0, "samples": 2},
        {"name": "logit_lens", "layers": [1]},
    ):
        ((_, attacked),) = attack(settings_).apply(subject_of(checkpoint, context), context)
        assert {w.dtype for w in attacked.checkpoint.state().values()} == {torch.bfloat16}


def test_no_strength_is_the_subject_itself(tmp_path, context):
    subject = subject_of(made("llama", tmp_path), context)
    idle = attack({"name": "refusal_direction", "layer": 99, "samples": 2, "strength": 0.0})
    assert list(idle.apply(subject, context)) == [(0, subject)]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2), st.floats(0, 1), st.integers(0, 10**6))
def test_a_component_is_taken_away_along_any_axis(first, second, axis, strength, seed):
    """By float64 sums over the axis: the component shrinks to (1 - strength) of itself, and the rest stays."""
    draw = torch.Generator().manual_seed(seed)
    tensor = torch.randn(first, second, 3, generator=draw)
    unit = nn.functional.normalize(torch.randn(tensor.shape[axis], generator=draw), dim=0)
    shape = [1, 1, 1]
    shape[axis] = -1
    along = (tensor.double() * unit.double().reshape(shape)).sum(axis, keepdim=True) * unit.double().reshape(shape)
    torch.testing.assert_close(
        without(tensor, axis, unit, strength).double(), tensor - strength * along, atol=1e-6, rtol=0
    )


def test_questions_of_the_measured_split_are_not_looked_at(tmp_path, context):
    """Other questions on test do not change the direction; others on dev do, and they change the key."""
    checkpoint = made("llama", tmp_path)
    one = attack({"name": "refusal_direction", "layer": 0, "samples": 3})

    def changed(split: Split) -> AttackContext:
        probes = [
            replace(p, items=tuple(replace(i, prompt=f"Pray tell, {i.prompt}") for i in p.items))
            if p.split is split
            else p
            for p in context.task.probes
        ]
        return replace(context, task=replace(context.task, probes=tuple(probes)))

    def edited(scene: AttackContext) -> torch.Tensor:
        ((_, attacked),) = one.apply(subject_of(checkpoint, context), scene)
        return attacked.checkpoint.state()["model.embed_tokens.weight"]

    probes = context.task.probes_of(Split.TEST)
    assert torch.equal(edited(changed(Split.TEST)), edited(context))
    assert one.reads(probes, changed(Split.TEST)) == one.reads(probes, context)
    assert not torch.equal(edited(changed(Split.DEV)), edited(context))
    assert one.reads(probes, changed(Split.DEV)) != one.reads(probes, context)


def test_styles_that_one_side_alone_has_are_left_out(context):
    """Otherwise the direction would separate passages from questions."""
    from suite.attacks.weights.refusal_direction import contrasted

    task = replace(context.task, utility=context.task.utility[:1])  # questions alone
    forget, retain = contrasted(task, Split.TEST)
    assert {item.style for item in (*forget, *retain)} == {Style.QUESTION}
    assert forget and retain


def test_a_model_in_which_not_all_is_known_is_refused(tmp_path, context):
    config = AutoConfig.for_model(
        "mamba",
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=BLOCKS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    config.save_pretrained(tmp_path / "mamba")
    with pytest.raises(SpecError, match=r"mamba.*mixer"):
        list(block_writers(outline(tmp_path / "mamba")))
    bloom = AutoConfig.for_model("bloom", vocab_size=512, hidden_size=32, n_layer=BLOCKS, n_head=4)
    bloom.save_pretrained(tmp_path / "bloom")
    with pytest.raises(SpecError, match=r"bloom.*word_embeddings_layernorm"):
        list(embedding_writers(outline(tmp_path / "bloom")))
    (tmp_path / "opt").mkdir()
    checkpoint = made("opt", tmp_path / "opt", do_layer_norm_before=False)
    with pytest.raises(SpecError, match="norms the residual stream itself"):
        list(attack({"name": "logit_lens", "layers": [1]}).apply(subject_of(checkpoint, context), context))


def test_blocks_that_are_not_there_are_refused(tmp_path, context):
    subject = subject_of(made("llama", tmp_path), context)
    with pytest.raises(SpecError, match="the model has 3 blocks"):
        list(attack({"name": "logit_lens", "layers": [1, 4]}).apply(subject, context))
    ((_, attacked),) = attack({"name": "refusal_direction", "layer": 3, "samples": 2}).apply(subject, context)
    with pytest.raises(SpecError, match="Use 0 to 2"):
        attacked.checkpoint.state()


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [-1]])
def test_layers_rise_from_nought(layers):
    with pytest.raises(SpecError, match="layers"):
        attack({"name": "logit_lens", "layers": layers})


def test_too_few_questions_are_refused(context):
    one = attack({"name": "refusal_direction", "layer": 0, "samples": 10_000})
    with pytest.raises(SpecError, match=r"^attacks: samples=10000: pocket has only 130 forget questions"):
        one.check(context.task, Split.TEST)
