"""Second-order optimizers against the papers' lines in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from suite.optimizers import OPTIMIZERS, Run
from suite.optimizers.adahessian import AdaHessian, hutchinson, spatial_average
from suite.optimizers.lbfgs import LBFGS, two_loop
from suite.optimizers.second_order import EmpiricalFisher, Sophia
from suite.oracle.base import Grade, Metered, Part
from tests.support.bowl import Bowl, flat, hilly, made, settings_of
from tests.support.language_model import oracle as language_model


def test_sophia_with_decay_line_by_line():
    """Algorithm 3 with curvature every third step, whose labels are resampled: B times the sample's square."""
    s = Sophia.Settings(lr=0.02, every=3, gamma=0.5, weight_decay=0.3)
    bowl = Bowl(hilly())
    optimizer = made(s, bowl)
    m, h = np.zeros(20), np.zeros(20)
    for t in range(8):
        m = 0.965 * m + 0.035 * bowl.g
        x = bowl.x
        optimizer.step(bowl)
        if t % 3 == 0:
            h = 0.99 * h + 0.01 * 7 * flat(bowl.samples[-1].gradient) ** 2
        expected = x - 0.02 * (np.clip(m / np.maximum(0.5 * h, 1e-12), -1, 1) + 0.3 * x)
        np.testing.assert_allclose(bowl.x, expected, atol=2e-6)


def test_published_sophia_code_renews_the_hessian_in_every_step():
    bowl = Bowl(hilly())
    optimizer = made(Sophia.Settings(lr=0.02, every=4), bowl)
    estimates = []
    for _ in range(8):
        optimizer.step(bowl)
        estimates.append(flat(optimizer.curvature))
    renewed = [t for t in range(1, 8) if not np.array_equal(estimates[t], estimates[t - 1])]
    assert renewed == [4]
    assert len(bowl.samples) == 2


def test_published_sophia_code_squares_the_minibatch_gradient_whose_labels_are_not_resampled():
    """One step on a language model: h is (1 - b2) B ghat^2, with ghat by hand from the labels that its seed draws."""
    loss_oracle, twin = language_model(), language_model()
    optimizer = Sophia(Sophia.Settings(lr=1e-3), loss_oracle.parameters, Run(steps=4))
    with torch.enable_grad():
        loss, count = twin.objective.resampled(twin.model, twin.batch, torch.Generator().manual_seed(0))
    expected = 0.01 * count * flat(torch.autograd.grad(loss, twin.parameters)) ** 2
    minibatch = 0.01 * count * flat(twin.gradient()) ** 2
    optimizer.step(loss_oracle)
    np.testing.assert_allclose(flat(optimizer.curvature), expected, rtol=1e-4, atol=1e-12)
    assert np.abs(minibatch - expected).max() > 0.1 * expected.max()


@pytest.mark.parametrize("name", ["sophia", "empirical_fisher", "adahessian"])
def test_published_sophia_code_averages_the_momentum_twice_in_a_step(name):
    bowl = Bowl(hilly())
    optimizer, g = made(settings_of(name, betas=(0.9, 0.99)), bowl), bowl.g
    optimizer.step(bowl)
    np.testing.assert_allclose(flat(optimizer.mean), 0.1 * g, rtol=1e-5)


def test_the_empirical_fisher_line_by_line():
    s = EmpiricalFisher.Settings(lr=0.02, gamma=0.3, labels=5, weight_decay=0.1)
    bowl = Bowl(hilly())
    optimizer = made(s, bowl)
    m, h = np.zeros(20), np.zeros(20)
    for _ in range(8):
        x, g = bowl.x, bowl.g
        m, h = 0.965 * m + 0.035 * g, 0.99 * h + 0.01 * 5 * g**2
        optimizer.step(bowl)
        expected = x - 0.02 * (np.clip(m / np.maximum(0.3 * h, 1e-12), -1, 1) + 0.1 * x)
        np.testing.assert_allclose(bowl.x, expected, atol=2e-6)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_adahessian_line_by_line(every, power):
    """Algorithm 1 where the Hessian is diagonal, so that Hutchinson's estimate is exact whatever is drawn."""
    diagonal = np.linspace(-0.5, 3, 20)
    bowl = Bowl(np.diag(diagonal))
    s = AdaHessian.Settings(lr=0.1, betas=(0.8, 0.95), power=power, eps=1e-3, weight_decay=0.2, every=every)
    optimizer = made(s, bowl, seed=3)
    m, v, sampled = np.zeros(20), np.zeros(20), 0
    for t in range(1, 8):
        x = bowl.x
        m = 0.8 * m + 0.2 * bowl.g
        if (t - 1) % every == 0:
            v, sampled = 0.95 * v + 0.05 * diagonal**2, sampled + 1
        scale = np.sqrt(v / (1 - 0.95**sampled)) ** power
        optimizer.step(bowl)
        expected = x - 0.1 * (m / (1 - 0.8**t) / (scale + 1e-3) + 0.2 * x)
        np.testing.assert_allclose(bowl.x, expected, rtol=2e-5, atol=2e-6)
    assert set(bowl.products) == {Part.TOTAL}


def test_hutchinsons_estimate_is_unbiased():
    """The variance of a draw's coordinate i is the sum of the squares of row i off the diagonal."""
    a, draws = hilly(), 2000
    bowl = Bowl(a)
    mean = sum(flat(hutchinson(bowl, (0, n))) for n in range(draws)) / draws
    spread = np.sqrt((a**2).sum(1) - a.diagonal() ** 2)
    assert (np.abs(mean - a.diagonal()) < 5 * spread / math.sqrt(draws)).all()
    assert not np.allclose(flat(hutchinson(bowl, (0, 0))), a.diagonal())


def test_spatial_averages_are_block_means_and_leave_vectors_alone():
    d = torch.arange(14.0).view(2, 7)
    expected = [[1, 1, 1, 4, 4, 4, 6], [8, 8, 8, 11, 11, 11, 13]]
    assert spatial_average(d, 3).tolist() == expected
    assert spatial_average(d, 1) is d
    assert spatial_average(d[0], 3).tolist() == d[0].tolist()


def test_adahessian_steps_by_block_means():
    diagonal = np.linspace(1, 3, 20)
    bowl = Bowl(np.diag(diagonal))
    optimizer = made(AdaHessian.Settings(lr=0.1, block=5), bowl)
    x, g = bowl.x, bowl.g
    blocks = np.concatenate([np.repeat(diagonal[:10].reshape(2, 5).mean(1), 5), diagonal[10:]])
    optimizer.step(bowl)
    np.testing.assert_allclose(bowl.x, x - 0.1 * g / (blocks + 1e-4), rtol=1e-5)


def test_the_two_loop_recursion_is_the_dense_bfgs_inverse():
    draw, h = np.random.default_rng(0), hilly(8)
    s = [draw.normal(size=8) for _ in range(5)]
    y = [h @ way for way in s]
    b = (s[-1] @ y[-1]) / (y[-1] @ y[-1]) * np.eye(8)
    for way, curved in zip(s, y, strict=True):
        rho = 1 / (way @ curved)
        left = np.eye(8) - rho * np.outer(way, curved)
        b = left @ b @ left.T + rho * np.outer(way, way)
    v = draw.normal(size=8)
    got = two_loop(torch.from_numpy(v), [torch.from_numpy(w) for w in s], [torch.from_numpy(w) for w in y])
    np.testing.assert_allclose(got.numpy(), b @ v, rtol=1e-9)


def go(bowl: Bowl, way: np.ndarray) -> None:
    with torch.no_grad():
        for parameter, part in zip(bowl.parameters, bowl.split(torch.from_numpy(way)), strict=True):
            parameter.add_(part)


def test_lbfgs_with_a_pair_along_every_conjugate_direction_is_the_damped_inverse():
    """v is the total's gradient, H the retain loss's Hessian. (Pairs of independent directions that are not conjugate
    determine H too, but BFGS keeps only the newest of their equations.)"""
    retain = hilly(8, seed=4)
    bowl = Bowl(hilly(8), retain)
    optimizer = made(LBFGS.Settings(lr=0.1, pairs=8, every=1, damping=0.2), bowl)
    optimizer.direction(bowl)
    for way in np.linalg.eigh(retain)[1].T:
        go(bowl, way)
        direction = flat(optimizer.direction(bowl))
    assert set(bowl.products) == {Part.RETAIN}
    np.testing.assert_allclose(direction, np.linalg.solve(retain + 0.2 * np.eye(8), bowl.g), rtol=2e-4)


def test_lbfgs_begins_with_the_curvature_along_the_gradient():
    """One pair (v, Hv): the step along v is Newton's on the line, v'v / v'Hv at its own scale."""
    bowl = Bowl(hilly(), 3.0 * np.eye(20))
    optimizer = made(LBFGS.Settings(lr=1.0, damping=1.0), bowl)
    np.testing.assert_allclose(flat(optimizer.direction(bowl)), bowl.g / 4, rtol=1e-5)


def test_lbfgs_leaves_out_pairs_along_which_the_retain_loss_curves_down():
    bowl = Bowl(hilly(), -np.eye(20))
    optimizer = made(LBFGS.Settings(lr=0.01, every=1, damping=0.5), bowl)
    for _ in range(3):
        np.testing.assert_allclose(flat(optimizer.direction(bowl)), bowl.g, rtol=1e-6)
        go(bowl, np.ones(20))
    assert len(bowl.products) == 3


def test_lbfgs_remembers_so_many_pairs_and_none_of_standing_still():
    bowl = Bowl(hilly())
    optimizer = made(LBFGS.Settings(lr=0.01, every=1, pairs=3), bowl)
    for stored in (1, 1, 1):
        optimizer.direction(bowl)
        assert len(optimizer.s) == len(optimizer.y) == stored
    for stored in (2, 3, 3):
        go(bowl, np.ones(20))
        optimizer.direction(bowl)
        assert len(optimizer.s) == len(optimizer.y) == stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adahessian", "lbfgs", "sophia"])
def test_second_order_goes_down_on_a_language_model(name, dtype):
    meter = Metered(language_model(dtype=dtype))
    lr = {"adahessian": 0.002, "lbfgs": 0.02, "sophia": 0.01}[name]
    optimizer = OPTIMIZERS[name](OPTIMIZERS[name].Settings(lr=lr, every=3), meter.parameters, Run(steps=12))
    before = float(meter.values(Part.TOTAL, [None]))
    for _ in range(12):
        optimizer.step(meter)
    assert float(meter.values(Part.TOTAL, [None])) < before
    assert meter.queries.grade() is Grade.SECOND
