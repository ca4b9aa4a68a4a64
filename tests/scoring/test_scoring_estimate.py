"""Means and standard errors against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import sem

from tasks.scoring.estimate import Estimate, mean

# The squares of numbers below 1e-150 are not normal, and neither way is exact for them.
SCORES = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-100)


@given(st.lists(SCORES, min_size=2, max_size=50))
@settings(deadline=None)
def test_mean_and_standard_error_are_scipys(values):
    estimate = mean(values)
    scale = max(map(abs, values))
    assert estimate.value == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12 * scale)
    assert estimate.stderr == pytest.approx(sem(values), rel=1e-9, abs=1e-12 * scale)
    assert estimate.n == len(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30).flatmap(lambda v: st.tuples(*[st.permutations(v)] * 2)))
@settings(deadline=None)
def test_the_order_of_the_examples_changes_no_bit(orders):
    first, second = orders
    assert mean(first) == mean(second)


def test_worked_case():
    estimate = mean([1.0, 2.0, 3.0, 4.0])
    assert estimate.value == 2.5
    assert estimate.stderr == pytest.approx(math.sqrt(5 / 3 / 4))


def test_one_example_has_a_value_and_no_standard_error():
    assert mean([0.5]) == Estimate(0.5, None, 1)
    assert mean([0.5]).error == 0.0


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf], [-math.inf, 0.5]])
def test_what_cannot_be_computed_is_null_with_a_reason(values):
    estimate = mean(values)
    assert not estimate.known
    assert estimate.value is None
    assert estimate.stderr is None
    assert estimate.reason
    assert estimate.n == len(values)
