"""Compressors and compressed optimizers against numpy, line by line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.optimizers import OPTIMIZERS, Optimizer, OptimizerSettings, Run
from suite.optimizers.compressed import (
    AdamOnQuantizedGradient,
    CompressedAdam,
    CompressedSGD,
    SGDOnQuantizedGradient,
    SignAdam,
    SignSGD,
)
from suite.optimizers.quantization import quantize, scaled_sign
from suite.oracle.base import Grade, Metered
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from tests.support.bowl import Bowl, flat, hilly
from tests.support.small import SMALL


def made(settings: OptimizerSettings, oracle: Bowl, steps: int = 20) -> Optimizer:
    return OPTIMIZERS[settings.name](settings, oracle.parameters, Run(steps))


def grid(x: np.ndarray, bits: int) -> np.ndarray:
    """The nearest of the grid's points, found by looking at all of them; of two as near, the one of even index."""
    levels = 2 ** (bits - 1) - 1
    index = np.array([*range(0, levels + 1, 2), *range(1, levels + 1, 2)])
    index = np.concatenate([index, -index])
    index = index[np.argsort(index % 2, kind="stable")]  # argmin takes the first, so even ones go first
    points = index * (np.abs(x).max() / levels)
    return points[np.abs(x.reshape(-1, 1) - points).argmin(1)].reshape(x.shape)


def tensors_of_each_parameter(vector: np.ndarray) -> list[np.ndarray]:
    """A bowl's parameters, (2, d/4) and (d/2,), as slices of the flat vector."""
    half = len(vector) // 2
    return [vector[:half].reshape(2, -1), vector[half:]]


def compressed(vector: np.ndarray, bits: int) -> np.ndarray:
    return np.concatenate([grid(part, bits).ravel() for part in tensors_of_each_parameter(vector)])


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.floats(-30, 30))
def test_the_grid_by_looking_at_every_point(bits, seed, magnitude):
    x = np.random.default_rng(seed).normal(size=(3, 11)) * 2.0**magnitude
    got = quantize(torch.from_numpy(x).float(), bits).double().numpy()
    step = np.abs(x).max() / (2 ** (bits - 1) - 1)
    between = np.abs(np.abs(x / step) % 1 - 0.5) < 1e-4  # halfway up to rounding, either neighbour is right
    np.testing.assert_allclose(got[~between], grid(x, bits)[~between], rtol=1e-5, atol=step * 1e-5)
    assert (np.abs(got - x) <= step / 2 * (1 + 1e-4)).all()
    assert len(np.unique(got)) <= 2**bits


def test_ties_go_to_the_even_neighbour_and_zero_stays_zero():
    x = torch.tensor([0.5, 1.5, -2.5, 2.5, 0.0, 3.0])  # three bits: s = 1
    assert quantize(x, 3).tolist() == [0.0, 2.0, -2.0, 2.0, 0.0, 3.0]
    assert quantize(torch.zeros(2, 3), 4).tolist() == [[0.0] * 3] * 2
    assert quantize(torch.tensor([-3.0, 0.0, 1e-30]), 1).tolist() == [-1.0, 0.0, 1.0]


def test_channels_have_a_scale_each_and_a_vector_is_one_channel():
    x = torch.tensor([[1.0, 0.4], [100.0, 40.0]])
    assert quantize(x, 2, "tensor").tolist() == [[0.0, 0.0], [100.0, 0.0]]
    assert quantize(x, 2, "channel").tolist() == [[1.0, 0.0], [100.0, 0.0]]
    cube = torch.randn(3, 2, 5)
    for row, uncompressed in zip(quantize(cube, 4, "channel"), cube, strict=True):
        torch.testing.assert_close(row, quantize(uncompressed, 4, "tensor"))
    torch.testing.assert_close(quantize(cube[0, 0], 4, "channel"), quantize(cube[0, 0], 4, "tensor"))
    assert scaled_sign(torch.tensor([[1.0, -3.0], [10.0, 0.0]]), "channel").tolist() == [[2.0, -2.0], [5.0, 0.0]]
    assert scaled_sign(torch.tensor([[1.0, -3.0], [10.0, 0.0]]), "tensor").tolist() == [[3.5, -3.5], [3.5, 0.0]]


def test_the_dtype_stays():
    x = torch.randn(4, 5).bfloat16()
    assert {quantize(x, bits).dtype for bits in range(1, 9)} == {scaled_sign(x).dtype} == {torch.bfloat16}


class AdamInNumpy:
    """Kingma and Ba 2015, Alg. 1, with AdamW's decay."""

    def __init__(self, decay: float) -> None:
        self.m = self.v = 0.0
        self.t, self.decay = 0, decay

    def __call__(self, g: np.ndarray, x: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return m / (np.sqrt(v) + 1e-8) + self.decay * x


class SGDInNumpy:
    def __init__(self, decay: float) -> None:
        self.m, self.decay = 0.0, decay

    def __call__(self, g: np.ndarray, x: np.ndarray) -> np.ndarray:
        self.m = 0.9 * self.m + g + self.decay * x
        return self.m


@pytest.mark.parametrize(
    ("s", "reference"),
    [
        (CompressedSGD.Settings(lr=0.05, bits=3, momentum=0.9, weight_decay=0.2), SGDInNumpy(0.2)),
        (CompressedAdam.Settings(lr=0.05, bits=5, weight_decay=0.2), AdamInNumpy(0.2)),
    ],
    ids=["sgd", "adam"],
)
def test_what_reaches_the_weights_is_the_compressed_direction(s, reference):
    bowl = Bowl(hilly())
    optimizer = made(s, bowl)
    for _ in range(8):
        x = bowl.x
        direction = reference(bowl.g, x)
        optimizer.step(bowl)
        expected = compressed(direction, s.bits)
        # A direction halfway between two levels may go to either, so a coordinate or two may differ by one level.
        off = np.abs(bowl.x - (x - 0.05 * expected)) > 2e-6
        assert off.sum() <= 1
    assert bowl.bits == [s.bits] * 8


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", [CompressedSGD, CompressedAdam])
def test_a_step_has_at_most_two_to_the_bits_values_per_tensor(kind, bits, feedback):
    bowl = Bowl(hilly(400))
    optimizer = made(kind.Settings(lr=0.01, bits=bits, error_feedback=feedback), bowl)
    for _ in range(3):
        for part in optimizer.direction(bowl):
            assert 1 < len(part.unique()) <= 2**bits


def test_sign_sgd_and_sign_adam_take_the_sign_of_the_direction():
    """Not the average of signs, and the decay is under the sign too."""
    for s, reference in (
        (SignSGD.Settings(lr=0.01, momentum=0.9, weight_decay=0.3), SGDInNumpy(0.3)),
        (SignAdam.Settings(lr=0.01), AdamInNumpy(0.0)),
    ):
        bowl = Bowl(hilly())
        optimizer = made(s, bowl)
        for _ in range(15):
            x = bowl.x
            direction = reference(bowl.g, x)
            optimizer.step(bowl)
            np.testing.assert_allclose(bowl.x, x - 0.01 * np.sign(direction), atol=1e-6)
        assert bowl.bits == [1] * 15


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.5)])
def test_sign_adam_is_sign_sgd_with_momentum_bit_for_bit(betas):
    one, other = Bowl(hilly()), Bowl(hilly())
    adam = made(SignAdam.Settings(lr=0.01, betas=betas), one)
    sgd = made(SignSGD.Settings(lr=0.01, momentum=0.9), other)
    for _ in range(200):
        adam.step(one)
        sgd.step(other)
        assert np.array_equal(one.x, other.x)


def test_a_coordinate_whose_direction_is_zero_stays():
    """An embedding of a token that no batch has; torch.optim's own gives it no step either."""
    for name in ("sign_sgd", "sign_adam", "compressed_sgd", "compressed_adam"):
        a = hilly()
        a[3] = a[:, 3] = 0
        bowl = Bowl(a)
        bowl.b[3] = 0
        optimizer = made(OPTIMIZERS[name].Settings(lr=0.1), bowl)
        before = bowl.x
        for _ in range(3):
            optimizer.step(bowl)
        assert bowl.x[3] == before[3]
        assert bowl.x[4] != before[4]


def test_one_bit_without_feedback_is_the_sign_under_its_plain_name():
    assert CompressedSGD.Settings(lr=0.1, bits=1, scale="channel", momentum=0.9, nesterov=True).plainest() == (
        SignSGD.Settings(lr=0.1, momentum=0.9, nesterov=True)
    )
    assert CompressedAdam.Settings(lr=0.1, bits=1, betas=(0.8, 0.9), warmup=3).plainest() == (
        SignAdam.Settings(lr=0.1, betas=(0.8, 0.9), warmup=3)
    )
    for kind in (CompressedSGD, CompressedAdam):
        for other in (kind.Settings(lr=0.1, bits=2), kind.Settings(lr=0.1, bits=1, error_feedback=True)):
            assert other.plainest() == other


def test_trials_that_take_the_same_steps_have_the_same_id():
    def id_of(**optimizer: object) -> str:
        return trial(merged(SMALL, {"optimizer": {"lr": 0.1, **optimizer}})).id

    assert id_of(name="compressed_adam", bits=1) == id_of(name="sign_adam")
    assert id_of(name="compressed_sgd", bits=1, momentum=0.9) == id_of(name="sign_sgd", momentum=0.9)
    assert id_of(name="compressed_sgd", bits=1, error_feedback=True) != id_of(name="sign_sgd")
    assert id_of(name="adamw") == id_of(name="adam", weight_decay=0.01)


@pytest.mark.parametrize("kind", [CompressedSGD, CompressedAdam])
def test_one_bit_without_feedback_steps_as_the_sign_does(kind):
    one, other = Bowl(hilly()), Bowl(hilly())
    s = kind.Settings(lr=0.1, bits=1)
    optimizers = made(s, one), made(s.plainest(), other)
    for _ in range(5):
        optimizers[0].step(one)
        optimizers[1].step(other)
    np.testing.assert_array_equal(one.x, other.x)


@pytest.mark.parametrize("bits", [1, 4])
def test_error_feedback_line_by_line(bits):
    """Algorithm 1 of arXiv 1901.09847 while the step size falls: the error is in units of the weights."""
    s = CompressedSGD.Settings(lr=0.1, schedule="linear", momentum=0.9, bits=bits, error_feedback=True)
    bowl, e, m = Bowl(hilly()), np.zeros(20), SGDInNumpy(0.0)
    optimizer = made(s, bowl, steps=10)
    for t in range(10):
        p = 0.1 * (1 - t / 10) * m(bowl.g, bowl.x) + e
        if bits == 1:
            step = np.concatenate([(np.abs(q).mean() * np.sign(q)).ravel() for q in tensors_of_each_parameter(p)])
        else:
            step = compressed(p, bits)
        expected, e = bowl.x - step, p - step
        optimizer.step(bowl)
        np.testing.assert_allclose(bowl.x, expected, atol=3e-6)
        np.testing.assert_allclose(flat(optimizer.error), e, atol=3e-6)


def test_error_feedback_loses_nothing():
    """x_T - e_T is where uncompressed steps along the same directions would have got to."""
    bowl = Bowl(hilly())
    optimizer = made(CompressedSGD.Settings(lr=0.05, bits=2, error_feedback=True), bowl)
    uncompressed = bowl.x
    for _ in range(20):
        uncompressed = uncompressed - 0.05 * bowl.g
        optimizer.step(bowl)
    np.testing.assert_allclose(bowl.x - flat(optimizer.error), uncompressed, atol=1e-5)
    assert np.abs(flat(optimizer.error)).max() > 1e-3


def test_the_direction_with_feedback_is_its_step_over_the_step_size():
    one, other = Bowl(hilly()), Bowl(hilly())
    s = CompressedAdam.Settings(lr=0.05, bits=3, error_feedback=True)
    optimizers = made(s, one), made(s, other)
    for _ in range(4):
        optimizers[0].step(one)
        optimizers[1].apply(optimizers[1].direction(other), 0.05)
    np.testing.assert_allclose(one.x, other.x, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 3])
def test_a_quantized_gradient_makes_a_first_order_direction(bits):
    """SGD's momentum averages what was compressed, so what reaches the weights has no grid; the grade is first."""
    bowl = Bowl(hilly(400))
    meter, m = Metered(bowl), 0.0
    optimizer = made(SGDOnQuantizedGradient.Settings(lr=0.05, bits=bits, momentum=0.9), meter)
    for _ in range(6):
        x, g = bowl.x, bowl.g
        m = 0.9 * m + (np.sign(g) if bits == 1 else compressed(g, bits))
        optimizer.step(meter)
        assert (np.abs(bowl.x - (x - 0.05 * m)) > 2e-5).sum() <= 1  # a tie of the grid
        m = (x - bowl.x) / 0.05
    assert len(np.unique(np.round(m, 4))) > 2**bits
    assert meter.queries.grade() is Grade.FIRST


def test_adam_on_signs_is_not_the_sign_of_adam():
    bowl, m, v = Bowl(hilly()), 0.0, 0.0
    optimizer = made(AdamOnQuantizedGradient.Settings(lr=0.05, bits=1), bowl)
    for t in range(1, 11):
        x, sign = bowl.x, np.sign(bowl.g)
        m, v = 0.9 * m + 0.1 * sign, 0.999 * v + 0.001 * sign**2
        optimizer.step(bowl)
        expected = x - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(bowl.x, expected, atol=2e-6)
    assert bowl.bits == []
