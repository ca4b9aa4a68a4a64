"""Quantizers: idempotent grids, bitsandbytes' tables by brute force, GPTQ and AWQ by definition."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from suite.attacks import attack
from suite.attacks.weights.awq import EXPONENTS, awq, scaled_rounding, scales
from suite.attacks.weights.calibration import edit_blocks
from suite.attacks.weights.gptq import gptq
from suite.attacks.weights.layer_inputs import Inputs, watched
from suite.attacks.weights.quantization import grid_codes, levels_of, round_to_nearest
from suite.config.errors import NotInstalledError, SpecError
from suite.models.layers import is_linear
from tasks.task import Split
from tests.support.language_model import llama

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROUPS = st.sampled_from([None, 0, 2, 4, 5])
# Published: QLoRA (arXiv 2305.14314), App. E, and the twelve of e2m1 with a bias, in units of the largest.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [sign * value / 192 for sign in (1, -1) for value in (0, 1, 32, 48, 64, 96, 128, 192)]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def given_inputs(columns: int, positions: int, seed: int = 0) -> tuple[torch.Tensor, Inputs]:
    """Correlated inputs of very different magnitudes, (positions, inputs), and their statistics."""
    x = normal(positions, columns, seed=seed)
    x = x + x @ normal(columns, columns, seed=seed + 1) / columns**0.5
    x *= normal(columns, seed=seed + 2).exp()
    inputs = Inputs.of("layer", columns, torch.device("cpu"), gram=True)
    inputs.add(x)
    return x, inputs


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype is other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# Rounding to nearest


@example(np.full((3, 10), -1e-44, np.float32), 0, 2, None, "bf16")  # rounded to zeros below zero
@settings(max_examples=150, deadline=None)
@given(
    arrays(np.float32, (3, 10), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.integers(-140, 60),
    st.integers(2, 8),
    GROUPS,
    st.sampled_from(sorted(DTYPES)),
)
def test_rounding_twice_is_rounding_once_bit_for_bit(values, exponent, bits, group, dtype):
    """At any magnitude, down to where numbers become subnormal."""
    weight = torch.from_numpy(values).mul(2.0**exponent).to(DTYPES[dtype]).nan_to_num()
    once = round_to_nearest(weight, bits, group)
    assert same_bits(round_to_nearest(once, bits, group), once)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), GROUPS, st.sampled_from(sorted(DTYPES)), st.floats(1e-3, 1e3))
def test_rounding_weights_of_a_models_size_twice_is_rounding_once(seed, bits, group, dtype, size):
    once = round_to_nearest(normal(7, 33, seed=seed, scale=size).to(DTYPES[dtype]), bits, group)
    assert same_bits(round_to_nearest(once, bits, group), once)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 11), st.integers(2, 8), GROUPS, st.integers(0, 10**6))
def test_the_grid_ends_at_the_largest_weight(rows, columns, bits, group, seed):
    """Every point is m c / L in float64, to fp32's precision, and the largest weight of a group stays where it is."""
    weight = normal(rows, columns, seed=seed)
    rounded = round_to_nearest(weight, bits, group)
    levels = 2 ** (bits - 1) - 1
    width = group or columns
    for row in range(rows):
        for start in range(0, columns, width):
            block = weight if group == 0 else weight[row, start : start + width]
            largest = float(block.abs().max())
            got = rounded[row, start : start + width].double()
            codes = (weight[row, start : start + width].double() * levels / largest).round()
            np.testing.assert_allclose(got, largest * codes / levels, rtol=2e-7)
            at = weight[row, start : start + width].abs() == largest
            assert torch.equal(rounded[row, start : start + width][at], weight[row, start : start + width][at])


def test_the_codes_are_those_that_are_rounded_to():
    weight = normal(6, 20, seed=3)
    for bits in range(2, 9):
        codes, scale = grid_codes(weight, bits, 5)
        torch.testing.assert_close((codes * scale).view(6, 20), round_to_nearest(weight, bits, 5), rtol=1e-6, atol=0)
        assert codes.abs().max() == levels_of(bits)


@pytest.mark.parametrize("group", [None, 0, 128, 100])
def test_a_tensor_of_many_blocks_is_rounded_row_by_row(group):
    """More weights than one block, columns that no group divides, and rows that are not contiguous."""
    weight = normal(200, 2000, seed=1).T[:1999]
    rounded = round_to_nearest(weight, 4, group)
    largest = weight.abs().max() if group == 0 else None
    for row in (0, 654, 655, 1998):
        for start in range(0, 200, group or 200):
            block = weight[row, start : start + (group or 200)].double()
            end = float(block.abs().max() if largest is None else largest)
            want = (block * 7 / end).round() * end / 7
            np.testing.assert_allclose(rounded[row, start : start + (group or 200)], want, rtol=2e-7)


def test_32_bits_are_the_subject_itself_and_what_lies_between_is_refused(scene):
    subject, context = scene
    ((_, attacked),) = attack({"name": "rtn", "bits": 32}).apply(subject, context)
    assert attacked is subject
    with pytest.raises(SpecError, match="bits=16: use 2 to 8, or 32"):
        attack({"name": "rtn", "bits": 16})


# bitsandbytes


def nearest_by_table(weight: torch.Tensor, table: list[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each weight all values that it could take, and its distance from the nearest of them."""
    flat = weight.double().flatten().numpy()
    values = np.stack(
        [np.abs(flat[i // size * size : i // size * size + size]).max() * np.array(table) for i in range(len(flat))]
    )
    return values, np.abs(values - flat[:, None]).min(1)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name, table", [("nf4", NF4), ("fp4", FP4)])
def test_four_bits_take_the_nearest_of_the_published_values(name, table, size, dtype):
    """Also where a block ends in the middle of a row, and where the last one is short."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes import functional

    form = attack({"name": name, "blocksize": size})
    for shape in ((6, 64), (5, 96), (3, 32), (7, 40), (3, 5)):
        weight = normal(*shape, seed=shape[1]).to(DTYPES[dtype])
        got = form.rounded(weight, functional)
        assert got.dtype is weight.dtype and got.shape == weight.shape
        values, distance = nearest_by_table(weight, table, size)
        at = got.double().flatten().numpy()
        precision = float(torch.finfo(weight.dtype).eps) * np.abs(values).max(1)
        assert (np.abs(values - at[:, None]).min(1) <= precision).all()
        assert (np.abs(at - weight.double().flatten().numpy()) <= distance + precision).all()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_layer_with_rounded_weights_computes_what_the_librarys_layer_does(name, double):
    bnb = pytest.importorskip("bitsandbytes")
    weight, x = normal(96, 128, seed=4, scale=0.02), normal(5, 128, seed=5)
    layer = bnb.nn.Linear4bit(128, 96, bias=False, compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(weight.clone(), False, quant_type=name, compress_statistics=double)
    rounded = attack({"name": name, "double": double}).rounded(weight, bnb.functional)
    torch.testing.assert_close(layer.to("cpu")(x), x @ rounded.T)
    if double:
        assert not torch.equal(rounded, attack({"name": name}).rounded(weight, bnb.functional))


def test_eight_bits_are_those_of_the_librarys_layer():
    """Its outputs differ only by the rounding of activations, which is below one percent."""
    bnb = pytest.importorskip("bitsandbytes")
    weight, x = normal(96, 128, seed=4, scale=0.02), normal(5, 128, seed=5)
    layer = bnb.nn.Linear8bitLt(128, 96, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight.clone(), False, has_fp16_weights=False)
    layer = layer.to("cpu")
    rounded = attack({"name": "int8"}).rounded(weight, bnb.functional)
    torch.testing.assert_close(rounded, layer.weight.CB * layer.weight.SCB[:, None] / 127, rtol=1e-6, atol=0)
    half = weight.half().double()
    largest = half.abs().amax(1, keepdim=True)
    codes = rounded.double() * 127 / largest
    np.testing.assert_allclose(codes, codes.round(), atol=1e-4)
    assert ((rounded - half).abs() <= largest / 254 * 1.0001).all()  # ties are common in fp16
    assert (layer(x.half()).float() - x @ rounded.T).norm() < 0.01 * (x @ rounded.T).norm()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["nf4", "fp4", "int8"]), st.sampled_from(sorted(DTYPES)), st.integers(0, 10**6))
def test_the_librarys_formats_are_rounded_to_once(name, dtype, seed):
    functional = pytest.importorskip("bitsandbytes.functional")
    form = attack({"name": name})
    once = form.rounded(normal(5, 48, seed=seed, scale=0.02).to(DTYPES[dtype]), functional)
    assert same_bits(form.rounded(once, functional), once)


def test_without_bitsandbytes_its_formats_say_what_to_install(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for name in ("nf4", "fp4", "int8"):
        with pytest.raises(NotInstalledError, match=r"attacks: .*pip install 'regrade\[bitsandbytes\]'"):
            attack({"name": name}).check(scene[1].task, Split.TEST)


# GPTQ


def optimal_brain_quantization(weight, gram, bits, group, damp):
    """Column after column in float64, with the inverse of what is left of the Hessian: (codes, rounded)."""
    w, levels = weight.double().numpy().copy(), 2 ** (bits - 1) - 1
    hessian = 2 * gram.double().numpy()
    hessian += damp * np.diag(hessian).mean() * np.eye(len(hessian))
    inverse = np.linalg.inv(hessian)
    codes = np.zeros_like(w)
    for j in range(w.shape[1]):
        if j % group == 0:
            step = np.abs(w[:, j : j + group]).max(1) / levels
        codes[:, j] = np.clip(np.round(w[:, j] / step), -levels, levels)
        error = (w[:, j] - codes[:, j] * step) / inverse[j, j]
        w -= np.outer(error, inverse[j])
        w[:, j] = codes[:, j] * step
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1.0  # gone: never read again
    return codes, w


@pytest.mark.parametrize("columns, group", [(12, 4), (12, 5), (12, 100), (300, 128), (300, 1000)])
@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_is_optimal_brain_quantization_in_the_order_of_columns(columns, group, bits):
    weight, (_, inputs) = normal(6, columns, seed=1), given_inputs(columns, 2 * columns)
    got = gptq(weight, inputs.gram, bits, group, 0.01)
    codes, want = optimal_brain_quantization(weight, inputs.gram, bits, min(group, columns), 0.01)
    # A weight half-way between two points may go to either, and takes the columns behind it along.
    same = np.isclose(got, want, rtol=1e-3, atol=1e-4).all(1)
    assert same.mean() >= 0.8
    assert len(np.unique(codes)) > 3


def test_gptq_is_rounding_to_nearest_where_inputs_do_not_depend_on_each_other():
    weight = normal(6, 20, seed=1)
    for gram in (3.0 * torch.eye(20), torch.zeros(20, 20)):
        for bits in (2, 4, 8):
            assert torch.equal(gptq(weight, gram, bits, 8, 0.01), round_to_nearest(weight, bits, 8))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_and_awq_keep_outputs_closer_than_rounding_to_nearest(bits):
    weight, (x, inputs) = normal(16, 64, seed=1), given_inputs(64, 200)

    def error(rounded):
        return float(((rounded - weight) @ x.T).norm())

    plain = error(round_to_nearest(weight, bits, 32))
    assert error(gptq(weight, inputs.gram, bits, 32, 0.01)) < 0.95 * plain
    assert error(awq(weight, inputs, bits, 32)) < 0.95 * plain


# AWQ


def test_awq_at_exponent_zero_is_rounding_to_nearest():
    weight, (_, inputs) = normal(6, 20, seed=1), given_inputs(20, 30)
    assert torch.equal(scaled_rounding(weight, scales(inputs.mean, 0.0), 4, 8), round_to_nearest(weight, 4, 8))


def test_awq_takes_the_exponent_whose_output_error_is_smallest():
    """Every exponent by hand, with outputs instead of products of inputs."""
    for seed in range(5):
        weight, (x, inputs) = normal(12, 24, seed=seed), given_inputs(24, 50, seed)
        mean = x.abs().double().mean(0).numpy()
        errors = []
        for i in range(20):
            s = np.maximum(mean ** (i / 20), 1e-4)
            s = torch.from_numpy(s / np.sqrt(s.max() * s.min())).float()
            errors.append(float(((round_to_nearest(weight * s, 3, 8) / s - weight) @ x.T).double().square().sum()))
        got = float(((awq(weight, inputs, 3, 8) - weight) @ x.T).double().square().sum())
        assert got == pytest.approx(min(errors), rel=1e-4)
        assert min(errors) < errors[0]
    assert len(EXPONENTS) == 20


def test_awqs_scales_change_nothing_before_weights_are_rounded_and_may_be_folded_afterwards():
    weight, (x, inputs) = normal(12, 24, seed=1), given_inputs(24, 50)
    s = scales(inputs.mean, 0.5)
    torch.testing.assert_close((x / s) @ (weight * s).T, x @ weight.T, rtol=1e-4, atol=1e-3)
    deployed = (x / s) @ round_to_nearest(weight * s, 4, 8).T
    torch.testing.assert_close(x @ scaled_rounding(weight, s, 4, 8).T, deployed, rtol=1e-4, atol=1e-3)


# Calibration

TEXTS = [(1, 5, 2, 7, 3), (4, 4, 9), (11, 2, 3, 4, 5, 6, 7, 8)]


def by_hand(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The inputs of a layer over all texts: (positions, inputs)."""
    found = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, args, __: found.append(args[0].detach()[0]))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    hook.remove()
    return torch.cat(found)


def test_statistics_are_those_of_what_a_plain_hook_sees():
    model = llama()
    layers = {name: m for name, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    with watched(layers, gram=True) as found, torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    assert [inputs.layers for inputs in found] == [
        [f"layers.{block}.{name}" for name in names]
        for block in range(2)
        for names in (
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        )
    ]
    for inputs in found:
        for name in inputs.layers:
            x = by_hand(model, f"model.{name}").double()
            assert inputs.positions == len(x) == 16
            torch.testing.assert_close(inputs.gram.double(), x.T @ x, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(inputs.norms.double(), x.norm(dim=0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(inputs.mean.double(), x.abs().mean(0), rtol=1e-5, atol=1e-6)
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_a_block_is_calibrated_with_what_the_edited_blocks_before_it_give():
    model, seen = llama(), {}

    def coarser(weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        seen.update(dict.fromkeys(inputs.layers, inputs))
        return round_to_nearest(weight, 2)

    edited = edit_blocks(model, TEXTS, coarser)
    linear = [name for name, weight in llama().named_parameters() if is_linear(name, weight)]
    assert edited == linear and set(seen) == set(linear)
    for depth in (0, 1):
        reference = llama()
        for block in reference.model.layers[:depth]:
            for name, weight in block.named_parameters():
                if is_linear(name, weight):
                    weight.data = round_to_nearest(weight.data, 2)
        for name in linear:
            if f"layers.{depth}." in name:
                x = by_hand(reference, name.removesuffix(".weight"))
                torch.testing.assert_close(seen[name].gram, x.T @ x, rtol=1e-4, atol=1e-4)
    for name, weight in llama().named_parameters():
        want = round_to_nearest(weight, 2) if name in linear else weight
        assert torch.equal(model.get_parameter(name), want)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_calibrated_quantizers_put_every_linear_layer_on_a_grid_and_leave_the_rest(scene, name):
    subject, context = scene
    ((_, attacked),) = attack({"name": name, "bits": 3, "group": 16, "samples": 3}).apply(subject, context)
    before, after = subject.checkpoint.state(), attacked.checkpoint.state()
    plain = {key: round_to_nearest(weight, 3, 16) for key, weight in before.items() if is_linear(key, weight)}
    assert before.keys() == after.keys()
    for key, weight in before.items():
        assert after[key].dtype is weight.dtype
        assert torch.equal(after[key], weight) == (key not in plain)
    assert any(not torch.equal(after[key], weight) for key, weight in plain.items())
    if name == "gptq":
        for key in plain:
            groups = after[key].unflatten(1, (-1, 16)).flatten(0, 1)
            assert all(len(values.unique()) <= 7 for values in groups)


def test_calibration_texts_that_there_are_not_are_refused(scene):
    task = scene[1].task
    with pytest.raises(SpecError, match="only 468 retain"):
        attack({"name": "gptq", "bits": 4, "samples": 10**6}).check(task, Split.TEST)
    with pytest.raises(SpecError, match="no such texts"):
        attack({"name": "awq", "bits": 4, "texts": "retained"})


def test_other_calibration_texts_are_another_key(scene):
    subject, context = scene

    def key(**changes):
        return attack({"name": "gptq", "bits": 4, "samples": 3, **changes}).reads(subject.probes, context)

    assert key() == key()
    assert key() != key(seed=1) != key(texts="forget")


def test_a_model_without_linear_layers_in_its_blocks_is_refused():
    class Convolution(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(num_hidden_layers=1)
            self.embed, self.layers = torch.nn.Embedding(23, 16), torch.nn.ModuleList([torch.nn.Conv1d(16, 16, 1)])

        @property
        def base_model(self):
            return self

        def forward(self, input_ids, use_cache):
            return self.layers[0](self.embed(input_ids).mT)

    model = Convolution()
    with pytest.raises(SpecError, match="no linear layers in its blocks"):
        edit_blocks(model, TEXTS, lambda weight, inputs: weight)
