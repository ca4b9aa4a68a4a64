"""State, oracle queries and precision of optimizers that use gradients and curvature, each on a quadratic."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from suite.optimizers import Optimizer
from suite.optimizers.first_order import TorchOptimizer
from suite.oracle.base import Metered, Queries
from tests.support.bowl import Bowl, hilly, made, settings_of

OURS = [
    "sgd", "adam", "adamw", "adam8bit", "mean_of_signs", "empirical_fisher",
    "sgd_on_quantized_gradient", "adam_on_quantized_gradient",
    "compressed_sgd", "compressed_adam", "sign_sgd", "sign_adam",
    "sophia", "adahessian", "lbfgs",
]  # fmt: skip


def steps(optimizer: Optimizer, bowl: Bowl, count: int, directed: bool) -> None:
    for _ in range(count):
        if directed:
            optimizer.apply(optimizer.direction(bowl), optimizer.lr)
            optimizer.steps_done += 1
        else:
            optimizer.step(bowl)


@pytest.mark.parametrize("directed", [False, True], ids=["moved", "directed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", OURS)
def test_a_run_taken_up_from_a_saved_state_goes_on_bit_for_bit(name, dtype, directed):
    """After no step, and after an odd number: a curvature of the next step depends on the count."""
    for before in (0, 3):
        bowl = Bowl(hilly(), dtype=dtype)
        first = made(settings_of(name), bowl)
        steps(first, bowl, before, directed)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        place = [p.detach().clone() for p in bowl.parameters]
        labels = bowl.labels.get_state()
        steps(first, bowl, 4, directed)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        for _ in range(2):  # the second time from the same saved state: the first has left it alone
            again = Bowl(hilly(), dtype=dtype)
            again.labels.set_state(labels)
            for parameter, weight in zip(again.parameters, place, strict=True):
                parameter.data.copy_(weight)
            second = made(settings_of(name), again)
            second.load_state_dict(saved)
            steps(second, again, 4, directed)
            np.testing.assert_array_equal(again.x, bowl.x)


@pytest.mark.parametrize("name", OURS)
def test_asks_is_what_the_meter_counts(name):
    meter = Metered(Bowl(hilly()))
    optimizer = made(settings_of(name), meter)
    for _ in range(7):
        optimizer.step(meter)
    curvature = math.ceil(7 / 2) if "curvature every k" in optimizer.queries_per_step else 0
    assert "1 gradient" in optimizer.queries_per_step
    assert meter.queries == Queries(gradient=7, curvature=curvature, bits=meter.queries.bits)
    assert meter.queries.grade() is optimizer.grade


def tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors(part)


@pytest.mark.parametrize("name", OURS)
def test_averages_of_bf16_weights_are_fp32(name):
    """In bf16 an average of decay 0.999 never moves: what a step adds is less than half of its last bit."""
    bowl = Bowl(hilly(), dtype=torch.bfloat16)
    optimizer = made(settings_of(name), bowl)
    before = bowl.x
    assert all(part.dtype is torch.float32 for part in optimizer.direction(bowl))
    optimizer.apply(optimizer.direction(bowl), 0.1)
    assert all(p.dtype is torch.bfloat16 for p in bowl.parameters)
    assert not np.array_equal(before, bowl.x)
    if not isinstance(optimizer, TorchOptimizer):
        saved_tensors = list(tensors(optimizer.state_dict()))
        assert saved_tensors
        assert all(t.dtype is torch.float32 for t in saved_tensors)
