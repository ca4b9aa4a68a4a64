"""Weight edits in families of architectures: which tensors, and each expert's matrix by an independent reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from suite.attacks import attack
from suite.attacks.base import AttackContext, Subject
from suite.attacks.weights.residual import block_writers
from suite.config.errors import SpecError
from suite.models.checkpoints import Checkpoint, State
from suite.models.layers import matrices_of
from suite.models.outline import model_outline, outline_of
from suite.oracle import noise
from suite.training.weight_change import change
from tests.support.attacked_families import (
    ATTENTION,
    CALIBRATED,
    FAMILIES,
    MIXTURES,
    TEXTS,
    VOCABULARY,
    Family,
    Weights,
    experts_of,
    made,
    matrices,
    subject_of,
)

BY_ITSELF = [
    {"name": "rtn", "bits": 4},
    {"name": "rtn", "bits": 3, "per": "group", "group": 8},
    {"name": "rtn", "bits": 4, "per": "tensor"},
    {"name": "nf4"},
    {"name": "fp4"},
    {"name": "int8"},
    {"name": "prune", "by": "magnitude", "sparsity": 0.5},
    {"name": "noise", "sigma": 0.1},
]


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path) -> tuple[Family, Weights]:
    return subject_of(request.param, tmp_path)


def after(settings: dict, weights: Checkpoint, scene: tuple[Subject, AttackContext]) -> State:
    ((_, attacked),) = attack(settings).apply(Subject(weights, scene[0].probes), scene[1])
    return attacked.checkpoint.state()


def rounded(weight: np.ndarray, settings: dict) -> np.ndarray:
    """Rounding to nearest, row by row and group by group, in float64."""
    weight, levels = weight.astype(np.float64), 2 ** (settings["bits"] - 1) - 1
    if settings.get("per") == "tensor":
        largest = np.abs(weight).max()
        return np.round(weight / largest * levels) * largest / levels
    width = settings.get("group", weight.shape[1])
    out = np.zeros_like(weight)
    for start in range(0, weight.shape[1], width):
        part = weight[:, start : start + width]
        largest = np.abs(part).max(1, keepdims=True)
        out[:, start : start + width] = np.round(part / largest * levels) * largest / levels
    return out


def alone(settings: dict, matrix: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    """What an attack makes of one matrix that is the weight of an ordinary linear layer."""
    weight = torch.from_numpy(np.ascontiguousarray(matrix))
    match settings["name"]:
        case "rtn":
            return rounded(matrix, settings)
        case "prune":
            flat = matrix.copy().ravel()
            flat[np.argsort(np.abs(flat), kind="stable")[: round(settings["sparsity"] * flat.size)]] = 0
            return flat.reshape(matrix.shape)
        case "noise":
            (z,) = noise.gaussian([weight], (0, 0x2015E, 0, *place))
            return matrix + settings["sigma"] * np.sqrt((matrix.astype(np.float64) ** 2).mean()) * z.numpy()
        case _:
            functional = pytest.importorskip("bitsandbytes.functional")
            return attack(settings).rounded(weight, functional).numpy()


@pytest.mark.parametrize("settings", BY_ITSELF, ids=lambda s: "-".join(map(str, s.values())))
def test_every_matrix_is_edited_as_a_layer_of_its_own_and_nothing_else_is(family, settings, scene):
    if settings["name"] in ("nf4", "fp4", "int8"):
        pytest.importorskip("bitsandbytes")
    kind, weights = family
    edited = after(settings, weights, scene)
    assert edited.keys() == weights.tensors.keys()
    number = 0
    for name, before in sorted(weights.tensors.items()):
        stored = kind.expected(name)
        if stored is None:
            assert torch.equal(edited[name], before), name
            continue
        sides = (matrices(stored, t.numpy(), experts_of(kind.config)) for t in (before, edited[name]))
        for expert, (one, other) in enumerate(zip(*sides, strict=True)):
            place = (number,) if stored in ("rows", "columns") else (number, expert)
            np.testing.assert_allclose(other, alone(settings, one, place), rtol=1e-4, atol=1e-6, err_msg=name)
        number += 1
    assert number
    logits = replace(weights, tensors=edited).model()(torch.tensor([TEXTS[1]])).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MIXTURES)
def test_rounding_a_mixture_twice_is_rounding_it_once(name, scene, tmp_path):
    _, weights = subject_of(name, tmp_path)
    for settings in BY_ITSELF[:3]:
        once = after(settings, weights, scene)
        twice = after(settings, replace(weights, tensors=once), scene)
        assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize("settings", CALIBRATED, ids=lambda s: s["name"])
def test_calibrated_edits_reach_every_matrix_and_nothing_else(family, settings, scene):
    kind, weights = family
    context = small_vocabulary(scene[1])
    ((_, attacked),) = attack(settings).apply(Subject(weights, scene[0].probes), context)
    edited = attacked.checkpoint.state()
    changed = {name for name, tensor in weights.tensors.items() if not torch.equal(edited[name], tensor)}
    assert changed == {name for name in weights.tensors if kind.expected(name)}
    for name in changed:
        for matrix in matrices(kind.expected(name), edited[name].numpy(), experts_of(kind.config)):
            if settings["name"] == "gptq":  # three points in each group of inputs
                assert all(len(np.unique(row[:8])) <= 3 for row in matrix)
            elif settings["name"] == "prune":
                assert ((matrix == 0).sum(1) == matrix.shape[1] // 2).all()
    assert replace(weights, tensors=edited).model()(torch.tensor([TEXTS[1]])).logits.isfinite().all()


def small_vocabulary(context: AttackContext) -> AttackContext:
    """A context whose texts have only ids of the small vocabulary."""

    class Encoder:
        template = context.encoder.template

        def examples(self, texts, block):
            whole = context.encoder.examples(texts, block)
            return [replace(text, ids=tuple(i % VOCABULARY for i in text.ids)) for text in whole]

    return AttackContext(context.engine, Encoder(), context.task, 0, context.device)


# What cannot be attacked, keys, statistics


def test_a_model_whose_matrices_are_not_known_is_refused(scene, tmp_path):
    """XLNet's attention multiplies with tensors of three axes that belong to no layer."""
    config = transformers.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=16)
    config.save_pretrained(tmp_path)
    weights = Weights(made(config).state_dict(), tmp_path)
    for settings in (*BY_ITSELF, *CALIBRATED):
        if settings["name"] in ("nf4", "fp4", "int8"):
            pytest.importorskip("bitsandbytes")
        with pytest.raises(SpecError, match=rf"{settings['name']} would change \d\d% .* XLNetLMHeadModel .*rel_attn"):
            after(settings, weights, scene)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_version_rises_only_where_numbers_moved(name, tmp_path):
    """Before, an attack took every tensor of two axes for a layer's, outputs first."""
    family, weights = subject_of(name, tmp_path)
    moved = name in {*MIXTURES, "gpt2", "mamba", "jamba"}
    for settings in (*BY_ITSELF, *CALIBRATED):
        made_ = attack(settings)
        assert made_.version_for(tmp_path) == made_.version + moved
    assert attack({"name": "merge", "share": 0.5}).version_for(tmp_path) == 1
    before = {
        n
        for n, t in weights.tensors.items()
        if t.ndim == 2 and not any(p in n for p in ("embed", "lm_head", "wte", "wpe", "norm"))
    }
    assert (before == {n for n in weights.tensors if family.expected(n) == "rows"}) == (not moved)
    assert outline_of(tmp_path).share == 1


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss", "mamba"])
def test_codes_that_flip_are_counted_in_the_same_matrices(name):
    family, model = FAMILIES[name], made(FAMILIES[name].config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.01)
    got = change(before, model)
    for bits, share in ((4, got.flipped_share_4bit), (8, got.flipped_share_8bit)):
        flips = total = 0
        for n, p in model.named_parameters():
            if kind := family.expected(n):
                for pair in zip(*(matrices(kind, t.detach().numpy(), 4) for t in (before[n], p)), strict=True):
                    levels = 2 ** (bits - 1) - 1
                    codes = [np.round(w / (np.abs(w).max(1, keepdims=True) / np.float32(levels))) for w in pair]
                    flips += (codes[0] != codes[1]).sum()
                    total += pair[0].size
        assert share == pytest.approx(flips / total, abs=2 / total) and share > 0


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4", "deepseek_v3"])
def test_experts_write_into_the_residual_stream_along_their_outputs(name):
    """Also where hidden and inner size are the same, so that shapes say nothing."""
    config = type(FAMILIES[name].config)(**{**FAMILIES[name].config.to_dict(), "intermediate_size": 32})
    model = made(config)
    axes = {w.names[0].rpartition(".mlp.")[2].rpartition("feed_forward.")[2]: w.axis for w in block_writers(model)}
    assert axes["experts.down_proj"] == (2 if FAMILIES[name].turned else 1)


def test_an_ordinary_layer_that_is_called_like_a_state_spaces_is_edited():
    """Doge's attention has a `dt_proj`, LFM2's convolution an `in_proj`."""
    doge = transformers.DogeConfig(**ATTENTION)
    assert model_outline(made(doge)).as_before
    assert any("dt_proj" in name for name in matrices_of(made(doge)))
