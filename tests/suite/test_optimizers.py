"""What every optimizer does, and some of them against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suite.optimizers import OPTIMIZERS, Run
from suite.optimizers.compressed import SignAdam, SignSGD
from suite.optimizers.first_order import SGD, Adam
from suite.optimizers.second_order import Sophia
from suite.oracle.base import Grade
from suite.testing import Case, OptimizerConformance
from suite.testing.functions import Functions
from suite.testing.language_model import same_bits
from suite.testing.runs import run_of
from tests.support.quadratic import Quadratic

RISES = "random_at_zo_norm"
OPTIONS = {"momentum": 0.9, "error_feedback": True}
"""Settings that add state to a run."""


class TestEveryOptimizer(OptimizerConformance):
    entries = (*(kind for name, kind in OPTIMIZERS.items() if name != RISES), Case(Adam, {"schedule": "linear"}))
    test_it_moves_a_model_with_smoothings_that_it_goes_with = None  # every pair is in test_conformance.py


class TestARandomWalk(OptimizerConformance):
    entry = OPTIMIZERS[RISES]
    test_the_loss_goes_down = None  # a walk may rise


class TestOptions(OptimizerConformance):
    test_it_moves_a_model_with_smoothings_that_it_goes_with = None  # every pair is in test_conformance.py
    entries = tuple(
        Case(kind, {name: value})
        for name, value in OPTIONS.items()
        for kind in OPTIMIZERS.values()
        if name in kind.Settings.model_fields
    )


@pytest.mark.parametrize(
    "name", [name for name, kind in OPTIMIZERS.items() if kind.grade not in (Grade.ZEROTH, Grade.HYBRID)]
)
def test_of_the_others_one_alone_depends_on_the_seed(name):
    """A zeroth-order optimizer always does."""
    one, other = (run_of(Functions(), optimizer=Case(OPTIMIZERS[name]), seed=seed).steps().weights() for seed in (1, 2))
    assert same_bits(one, other) is (name != "adahessian")


def test_every_grade_has_an_optimizer():
    assert {kind.grade for kind in OPTIMIZERS.values()} == set(Grade)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD.Settings(lr=0.05, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (Adam.Settings(lr=0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
        (Adam.Settings(lr=0.05, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1)),
    ],
)
def test_first_order_is_torch_optim(ours, theirs):
    mine, reference = Quadratic(), Quadratic()
    optimizer = OPTIMIZERS[ours.name](ours, mine.parameters, Run(steps=10))
    leaves = [p.requires_grad_() for p in reference.parameters]
    bare = theirs(leaves)
    for _ in range(10):
        optimizer.step(mine)
        for leaf, gradient in zip(leaves, reference.gradient(), strict=True):
            leaf.grad = gradient.detach()
        bare.step()
    torch.testing.assert_close(mine.x, reference.x.detach(), rtol=1e-5, atol=1e-6)


def test_sign_sgd_and_sign_adam_take_the_sign_of_the_direction():
    """Against numpy, line by line: the sign of Adam's direction, not the average of signs."""
    for settings_ in (SignSGD.Settings(lr=0.01), SignAdam.Settings(lr=0.01)):
        oracle, m, v = Quadratic(), np.zeros(20), np.zeros(20)
        optimizer = OPTIMIZERS[settings_.name](settings_, oracle.parameters, Run(steps=15))
        for t in range(1, 16):
            g = torch.cat([p.flatten() for p in oracle.gradient()]).double().numpy()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            before = oracle.x.numpy().copy()
            optimizer.step(oracle)
            expected = before - 0.01 * np.sign(g if settings_.name == "sign_sgd" else adam)
            np.testing.assert_allclose(oracle.x.numpy(), expected, atol=1e-6)
        assert set(oracle.bits) == {1}


def test_sophia_by_the_paper():
    """Algorithm 3, line by line, with curvature every third step."""
    s = Sophia.Settings(lr=0.02, every=3, gamma=0.5)
    oracle = Quadratic()
    optimizer = Sophia(s, oracle.parameters, Run(steps=10))
    m, h, diagonal = np.zeros(20), np.zeros(20), oracle.a.diagonal().numpy()
    for t in range(10):
        x = oracle.x.numpy().copy()
        g = torch.cat([p.flatten() for p in oracle.gradient()]).double().numpy()
        m = 0.965 * m + 0.035 * g
        if t % 3 == 0:
            h = 0.99 * h + 0.01 * diagonal
        optimizer.step(oracle)
        expected = x - 0.02 * np.clip(m / np.maximum(0.5 * h, 1e-12), -1, 1)
        np.testing.assert_allclose(oracle.x.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_start_at_the_step_size_and_fall_to_nothing(schedule):
    s = SGD.Settings(lr=1.0, schedule=schedule)
    factors = [s.factor(step, 100) for step in range(100)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == (1 if schedule == "constant" else pytest.approx(0, abs=0.011))
    assert SGD.Settings(lr=1.0, warmup=3).factor(0, 10) == 0.25
