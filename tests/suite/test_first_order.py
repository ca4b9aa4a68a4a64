"""First-order optimizers against torch.optim and line by line in numpy."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from suite.config.errors import NotInstalledError, SpecError
from suite.config.settings import parse
from suite.optimizers import Run
from suite.optimizers.adam8bit import Adam8bit
from suite.optimizers.first_order import SGD, Adam, AdamW, MeanOfSigns
from tests.support.bowl import Bowl, hilly, made

TORCH = [
    (SGD.Settings(lr=0.05), torch.optim.SGD, {}),
    (SGD.Settings(lr=0.05, momentum=0.9, weight_decay=0.1), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (
        SGD.Settings(lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
    (Adam.Settings(lr=0.05), torch.optim.Adam, {}),
    (Adam.Settings(lr=0.05, weight_decay=0.2, betas=(0.8, 0.9)), torch.optim.AdamW,
     {"weight_decay": 0.2, "betas": (0.8, 0.9)}),
    (AdamW.Settings(lr=0.05), torch.optim.AdamW, {"weight_decay": 0.01}),
]  # fmt: skip


def bare(kind: type[torch.optim.Optimizer], steps: int, **settings: object) -> np.ndarray:
    """Where a loop of torch's own gets to."""
    bowl = Bowl(hilly())
    optimizer = kind(bowl.parameters, lr=0.05, fused=True, **settings)
    for _ in range(steps):
        for parameter, part in zip(bowl.parameters, bowl.gradient(), strict=True):
            parameter.grad = part
        optimizer.step()
    return bowl.x


@pytest.mark.parametrize(("ours", "kind", "theirs"), TORCH)
def test_moving_is_torch_optim_bit_for_bit(ours, kind, theirs):
    bowl = Bowl(hilly())
    optimizer = made(ours, bowl)
    for _ in range(10):
        optimizer.step(bowl)
    np.testing.assert_array_equal(bowl.x, bare(kind, 10, **theirs))


@pytest.mark.parametrize(("ours", "kind", "theirs"), TORCH)
def test_the_direction_is_what_torch_optim_moves_by_at_a_step_size_of_one(ours, kind, theirs):
    """Weight decay included: in the gradient for SGD, beside the averages for AdamW."""
    bowl = Bowl(hilly())
    optimizer = made(ours, bowl)
    for _ in range(10):
        optimizer.apply(optimizer.direction(bowl), 0.05)
    np.testing.assert_allclose(bowl.x, bare(kind, 10, **theirs), rtol=1e-5, atol=1e-6)


def test_a_run_may_go_over_from_moving_to_directions_and_keeps_its_averages():
    bowl = Bowl(hilly())
    optimizer = made(Adam.Settings(lr=0.05, weight_decay=0.2), bowl)
    for _ in range(5):
        optimizer.step(bowl)
    for _ in range(3):
        optimizer.apply(optimizer.direction(bowl), 0.05)
    for _ in range(2):
        optimizer.step(bowl)
    np.testing.assert_allclose(bowl.x, bare(torch.optim.AdamW, 10, weight_decay=0.2), rtol=1e-5, atol=1e-6)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(SpecError, match="Set momentum too"):
        parse(SGD.Settings, {"lr": 0.1, "nesterov": True}, "optimizer.")


def test_adamw_is_adam_with_the_published_decay_under_another_name():
    assert AdamW.Settings(lr=0.1).plainest() == Adam.Settings(lr=0.1, weight_decay=0.01)
    assert AdamW.Settings(lr=0.1, weight_decay=0.3, warmup=2).plainest() == Adam.Settings(
        lr=0.1, weight_decay=0.3, warmup=2
    )


def test_the_mean_of_signs_line_by_line():
    bowl, m = Bowl(hilly()), np.zeros(20)
    optimizer = made(MeanOfSigns.Settings(lr=0.1, beta=0.8), bowl)
    for _ in range(5):
        m = 0.8 * m + 0.2 * np.sign(bowl.g)
        expected = bowl.x - 0.1 * m
        optimizer.step(bowl)
        np.testing.assert_allclose(bowl.x, expected, atol=1e-6)


def test_without_bitsandbytes_adam8bit_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    bowl = Bowl(hilly())
    with pytest.raises(NotInstalledError, match=r"pip install 'regrade\[bitsandbytes\]'"):
        Adam8bit(Adam8bit.Settings(lr=0.1), bowl.parameters, Run(steps=1))


def test_adam8bit_is_adamw_with_averages_of_eight_bits():
    """On fewer than 4,096 weights AdamW itself; on more it stays within the published grid of 1/128 of it."""
    small, large = Bowl(hilly()), Bowl(hilly(12))
    large.parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(2, -1))]
    large.gradient = lambda: [large.parameters[0].detach() * 3 + 0.5]
    twin = torch.nn.Parameter(large.parameters[0].detach().clone())
    theirs = torch.optim.AdamW([twin], lr=0.05, weight_decay=0.01)
    one, other = made(Adam8bit.Settings(lr=0.05), small), made(Adam8bit.Settings(lr=0.05), large)
    for _ in range(10):
        one.step(small)
        other.step(large)
        twin.grad = twin.detach() * 3 + 0.5
        theirs.step()
    np.testing.assert_allclose(small.x, bare(torch.optim.AdamW, 10, weight_decay=0.01), rtol=1e-5, atol=1e-6)
    state = other.inner.state[large.parameters[0]]
    assert state["state1"].dtype is state["state2"].dtype is torch.uint8
    moved = twin.detach() - torch.linspace(-1, 1, 8192).view(2, -1)
    difference = large.parameters[0].detach() - twin.detach()
    assert 0 < float(difference.norm() / moved.norm()) < 0.1
