"""Properties of every smoothing, and the arithmetic that they share."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from suite.optimizers import OPTIMIZERS, Run
from suite.oracle.base import Displacement, Grade, Metered, Order, Part
from suite.smoothing import SMOOTHINGS, Smoothing
from suite.smoothing.arithmetic import combined, displaced_weights, project
from tests.support.functions import Functions, flat, smooth, vector, walk
from tests.support.language_model import direction, same_bits, weights
from tests.support.language_model import oracle as llama_oracle

SHORT = {"wa": {"start": 2, "every": 2}, "ema": {"every": 2}}
"""Settings with which a run of a few steps has something to average."""
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, SHORT.get(name, {})) for name in SMOOTHINGS),
    ("gp", {"form": "difference"}),
    ("cp", {"form": "difference"}),
    ("universal_sam", {"form": "trace"}),
    ("extrapolation", {"kind": "noise"}),
    *(("stable_un", {"perturbation": kind}) for kind in ("gaussian", "relearn", "historical")),
]
every_variant = pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "")


# --- arithmetic


def test_projection_by_the_paper():
    """PCGrad in numpy: only the conflicting component is removed, with an inner product over all tensors."""
    one, other = [torch.tensor([1.0, 2.0]), torch.tensor([[-4.0]])], [torch.tensor([3.0, 0.0]), torch.tensor([[1.0]])]
    g, r = flat(one).numpy(), flat(other).numpy()
    np.testing.assert_allclose(flat(project(one, other)).numpy(), g - (g @ r) / (r @ r) * r, rtol=1e-6)
    assert abs(float(flat(project(one, other)) @ flat(other))) < 1e-5
    agreeing = [-g for g in one]
    assert torch.equal(flat(project(agreeing, other)), flat(agreeing))
    nothing = [torch.zeros_like(o) for o in other]
    assert torch.equal(flat(project(one, nothing)), flat(one))


def test_sums_are_fp32_and_rounded_once():
    """In bf16 1 + 2^-9 is 1 however often it is added; 1 + 4 * 2^-9 is not."""
    one, little = [torch.ones(1, dtype=torch.bfloat16)], [torch.full((1,), 2.0**-9, dtype=torch.bfloat16)]
    total = combined([(1.0, one), *[(1.0, little)] * 4], like=one)
    assert total[0].dtype is torch.bfloat16
    assert float(total[0]) == 1 + 4 * 2.0**-9


# --- what holds for every smoothing


@every_variant
def test_smoothing_shows_in_the_cost_and_not_in_the_grade(name, changes):
    for optimizer, grade in (("adam", Grade.FIRST), ("sign_sgd", Grade.COMPRESSED), ("r_adazo", Grade.ZEROTH)):
        inner = Functions()
        outer = Metered(smooth(name, inner, **changes))
        run(optimizer, outer)
        assert outer.queries.grade() is grade
        assert inner.steps == 3
        if name not in ("none", "wa", "ema", "extrapolation") and optimizer == "adam":
            assert inner.queries.gradient + inner.queries.curvature > 3


@every_variant
def test_questions_that_are_not_smoothed_are_answered_by_the_oracle_inside(name, changes):
    oracle, plain = Functions(), Functions()
    smoothed = smooth(name, oracle, **changes)
    way = oracle.split(vector(20))
    for part in Part:
        passed = part in (Part.RETAIN, Part.RELEARN)
        if passed or Order.VALUE not in smoothed.smooths:
            places = [None, Displacement.along(way, 0.1)]
            assert torch.equal(smoothed.values(part, places), plain.values(part, places))
            assert smoothed.directional(part, way) == plain.directional(part, way)
        if passed or Order.GRADIENT not in smoothed.smooths:
            assert torch.equal(flat(smoothed.gradient(part)), flat(plain.gradient(part)))
        if passed or Order.CURVATURE not in smoothed.smooths:
            assert torch.equal(flat(smoothed.hvp(part, way)), flat(plain.hvp(part, way)))
    assert torch.equal(flat(smoothed.curvature_sample().gradient), flat(plain.curvature_sample().gradient))


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_questions_to_a_model_leave_its_weights_bit_for_bit(name, changes, dtype):
    loss_oracle = llama_oracle(dtype=dtype)
    smoothed = smooth(name, loss_oracle, **changes)
    before, way = weights(loss_oracle), direction(loss_oracle)
    gradient = smoothed.gradient()
    assert [g.dtype for g in gradient] == [p.dtype for p in loss_oracle.parameters]
    assert bool(flat(gradient).any())
    loss = smoothed.values(Part.TOTAL, [None, Displacement.along(way, 1e-3)])
    assert loss.dtype is torch.float64 and loss.shape == (2,)
    assert same_bits(before, weights(loss_oracle))


@every_variant
@pytest.mark.parametrize("optimizer", ["adam", "r_adazo"])
def test_every_smoothing_with_an_optimizer_on_a_model(name, changes, optimizer):
    inner = llama_oracle()
    start = flat(inner.parameters)
    run(optimizer, smooth(name, inner, **changes))
    end = flat(inner.parameters)
    assert bool(end.isfinite().all())
    assert not torch.equal(start, end)


@every_variant
@pytest.mark.parametrize("optimizer", ["adam", "r_adazo"])
def test_a_run_repeats_bit_for_bit(name, changes, optimizer):
    one, other = Functions(), Functions()
    for oracle in (one, other):
        run(optimizer, smooth(name, oracle, seed=3, **changes))
    assert same_bits(one.parameters, other.parameters)


def run(optimizer: str, oracle: Smoothing | Metered) -> None:
    kind = OPTIMIZERS[optimizer]
    steps = kind(kind.Settings(lr=1e-3), oracle.parameters, Run(3))
    for _ in range(3):
        steps.step(oracle)
        oracle.stepped()


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_taken_up_again_ends_in_the_same_bits(name, changes, dtype):
    uninterrupted = Functions(dtype=dtype)
    straight = smooth(name, uninterrupted, **changes)
    walk(straight, 3)
    file = io.BytesIO()
    torch.save({"smoothing": straight.state_dict(), "weights": [p.clone() for p in uninterrupted.parameters]}, file)
    walk(straight, 3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Functions(dtype=dtype)
    resumed = smooth(name, again, **changes)
    for p, w in zip(again.parameters, saved["weights"], strict=True):
        p.copy_(w)
    resumed.load_state_dict(saved["smoothing"])
    walk(resumed, 3)
    assert same_bits(uninterrupted.parameters, again.parameters)
    ends = [s.final_weights() for s in (straight, resumed)]
    assert [end is None for end in ends] == [name != "wa"] * 2
    assert ends[0] is None or same_bits(*ends)


def test_every_smoothing_names_its_source():
    assert all(kind.source for name, kind in SMOOTHINGS.items() if name != "none")


def test_a_retain_weight_of_zero_leaves_the_smoothed_forget_loss():
    for name, changes in VARIANTS:
        loss_oracle = llama_oracle(name="graddiff", retain_weight=0.0)
        smoothed = smooth(name, loss_oracle, **changes)
        torch.testing.assert_close(
            flat(smoothed.gradient()), flat(smoothed.gradient(Part.FORGET)), rtol=1e-4, atol=1e-5
        )


def test_places_are_summed_in_fp32():
    weight = [torch.ones(1, dtype=torch.bfloat16)]
    at = Displacement.along(weight, 2.0**-9) + Displacement.along(weight, 2.0**-9)
    assert float(displaced_weights(weight, at)[0]) == 1 + 2 * 2.0**-9
    assert math.isclose(float(weight[0]), 1.0)
