"""Averages of iterates and extrapolation, line by line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suite.oracle.base import Part
from suite.testing.functions import SIZE, Functions, flat, matrix, quadratic, vector, walk
from tests.support.functions import close, grad, smooth

# --- averages of iterates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_averaging_publishes_the_mean_of_its_iterates_and_leaves_the_steps_alone(dtype):
    plain, averaged = Functions(dtype=dtype), Functions(dtype=dtype)
    wa, none = smooth("wa", averaged, steps=9, start=3, every=2), smooth("none", plain, steps=9)
    iterates = []
    for _ in range(8):
        walk(none, 1)
        iterates.append(plain.x.numpy())
        walk(wa, 1)
        if len(iterates) < 3:
            assert wa.final_weights() is None
    assert torch.equal(plain.x, averaged.x)
    expected = np.mean([iterates[step - 1] for step in (3, 5, 7)], axis=0)
    got = wa.final_weights()
    assert all(g.dtype is dtype for g in got)
    reference = torch.from_numpy(expected).float().to(dtype).double()
    torch.testing.assert_close(flat(got), reference, rtol=1e-6 if dtype is torch.float32 else 4e-3, atol=0)
    assert not torch.equal(flat(got), averaged.x)


def test_an_average_that_would_never_begin_is_refused():
    with pytest.raises(ValueError, match=r"smoothing\.start: 6.*6 steps"):
        smooth("wa", Functions(), steps=6, start=6)
    smooth("wa", Functions(), steps=7, start=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moving_average_line_by_line_and_training_goes_on_from_the_shadow(dtype):
    """In numpy; the shadow keeps what bf16 weights round away."""
    oracle = Functions(quadratic(1), quadratic(2), dtype)
    smoothed = smooth("ema", oracle, decay=0.7, every=3)
    shadow = oracle.x.numpy().copy()
    homes = [p.data_ptr() for p in oracle.parameters]
    for step in range(1, 8):
        for p, g in zip(oracle.parameters, smoothed.gradient(), strict=True):
            p.sub_(0.05 * g)
        moved = oracle.x.numpy().copy()
        smoothed.stepped()
        if step % 3:
            np.testing.assert_array_equal(oracle.x.numpy(), moved)
            continue
        shadow = 0.7 * shadow + 0.3 * moved
        np.testing.assert_allclose(flat(smoothed.shadow).numpy(), shadow, rtol=1e-5, atol=1e-6)
        rounded = torch.cat([s.flatten() for s in smoothed.shadow]).to(dtype).double()
        assert torch.equal(oracle.x, rounded)
    assert homes == [p.data_ptr() for p in oracle.parameters], "in place: everything that shares the weights sees it"
    assert oracle.steps == 7


# --- extrapolation


def test_extrapolation_by_the_paper():
    """Gradients ahead of the weights, steps from the weights: in numpy for a quadratic."""
    oracle, gamma, lr = Functions(quadratic(1), quadratic(2)), 0.1, 0.05
    smoothed = smooth("extrapolation", oracle, gamma=gamma)
    a, b = (matrix(1) + matrix(2)).numpy(), (vector(101) + vector(102)).numpy()
    x, previous = oracle.x.numpy().copy(), np.zeros(SIZE)
    for _ in range(4):
        previous = a @ (x - gamma * previous) + b
        x = x - lr * previous
        gradient = smoothed.gradient()
        with torch.no_grad():
            for p, g in zip(oracle.parameters, gradient, strict=True):
                p.sub_(lr * g)
                g.fill_(float("nan"))  # an optimizer may overwrite the result
        smoothed.stepped()
        np.testing.assert_allclose(oracle.x.numpy(), x, rtol=1e-5, atol=1e-6)


def test_extrapolation_sums_the_parts_that_were_asked_apart_and_skips_steps_without_a_gradient():
    oracle, gamma = Functions(), 0.1
    smoothed = smooth("extrapolation", oracle, gamma=gamma)
    total = grad(oracle.f[Part.TOTAL], oracle.x)
    smoothed.gradient(Part.FORGET)
    smoothed.gradient(Part.RETAIN)
    smoothed.stepped()
    smoothed.values(Part.TOTAL, [None])
    smoothed.stepped()
    smoothed.gradient()
    torch.testing.assert_close(oracle.evaluated[-1][1], oracle.x - gamma * total, rtol=1e-5, atol=1e-5)


def test_extrapolation_by_noise_has_the_length_of_the_gradient():
    oracle, gamma = Functions(), 0.1
    smoothed = smooth("extrapolation", oracle, gamma=gamma, kind="noise")
    close(smoothed.gradient(), grad(oracle.f[Part.TOTAL], oracle.x))
    length = float(grad(oracle.f[Part.TOTAL], oracle.x).norm())
    smoothed.stepped()
    smoothed.gradient()
    ahead = oracle.evaluated[-1][1] - oracle.x
    assert float(ahead.norm()) == pytest.approx(gamma * length, rel=1e-5)
