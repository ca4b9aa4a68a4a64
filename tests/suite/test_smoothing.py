"""Properties of every smoothing, and the arithmetic that they share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from suite.oracle.base import Displacement
from suite.smoothing import SMOOTHINGS
from suite.smoothing.arithmetic import combined, displaced_weights, project
from suite.testing import Case, SmoothingConformance
from suite.testing.functions import Functions, flat
from suite.testing.runs import STEPS, run_of

VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("gp", {"form": "difference"}),
    ("cp", {"form": "difference"}),
    ("universal_sam", {"form": "trace"}),
    ("extrapolation", {"kind": "noise"}),
    *(("stable_un", {"perturbation": kind}) for kind in ("gaussian", "relearn", "historical")),
]
CASES = [*map(Case, SMOOTHINGS.values()), *(Case(SMOOTHINGS[name], changes) for name, changes in VARIANTS)]


class TestEverySmoothing(SmoothingConformance):
    entries = CASES
    test_it_moves_a_model_with_an_optimizer_of_each_grade = None  # every pair is in test_conformance.py


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_a_smoothing_costs_shows_in_the_queries_inside(case):
    queries = run_of(Functions(), case).steps().oracle.queries
    alone = case.name in ("none", "wa", "ema", "extrapolation")
    assert (queries.gradient + queries.curvature > STEPS) is not alone


def test_an_average_alone_is_exported_instead_of_the_weights():
    for case in CASES:
        ends = run_of(Functions(), case).steps().smoothed.final_weights()
        assert (ends is None) is (case.name != "wa"), case.id


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


def test_places_are_summed_in_fp32():
    weight = [torch.ones(1, dtype=torch.bfloat16)]
    at = Displacement.along(weight, 2.0**-9) + Displacement.along(weight, 2.0**-9)
    assert float(displaced_weights(weight, at)[0]) == 1 + 2 * 2.0**-9
    assert math.isclose(float(weight[0]), 1.0)
