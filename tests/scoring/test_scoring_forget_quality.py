"""Forget quality against scipy bit by bit, and its logarithm against exact fractions and counted walks."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from tasks.scoring import METRICS, summarise
from tasks.scoring.forget_quality import ks_log10_p
from tasks.task import Sample

RATIOS = st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0]) | st.floats(1e-3, 1e3), min_size=1, max_size=30)


def questions(ratios) -> list[Sample]:
    """One question per truth ratio."""
    return [
        Sample(str(index), "x", choice_logprobs=(-1.0, math.log(ratio) - 1), choice_lengths=(1, 1), correct=0)
        for index, ratio in enumerate(ratios)
    ]


def summary_of(metric: str, model, retrained):
    return summarise(metric, [questions(model)], [questions(retrained)])


def walks_that_get_away(n: int, h: int) -> Fraction:
    """Share of the walks of n steps up and n down that are somewhere h away from their start: every walk tried."""
    away = total = 0
    for ups in combinations(range(2 * n), n):
        place = np.cumsum([1 if step in ups else -1 for step in range(2 * n)])
        away += bool(np.max(np.abs(place)) >= h)
        total += 1
    return Fraction(away, total)


@pytest.mark.parametrize("n", range(1, 7))
def test_the_distribution_is_that_of_all_walks(n):
    for h in range(1, n + 1):
        assert ks_log10_p(n, h) == pytest.approx(math.log10(walks_that_get_away(n, h)), abs=1e-12)


@given(
    RATIOS.flatmap(
        lambda one: st.tuples(st.just(one), st.lists(st.floats(1e-3, 1e3), min_size=len(one), max_size=len(one)))
    )
)
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore:ks_2samp")  # an exact p-value of 1 + 1e-16 is said to have failed
def test_forget_quality_is_scipys_to_the_last_bit(ratios):
    model, retrained = ratios
    rows = [[METRICS["truth_ratio_geometric"].compute(sample) for sample in questions(some)] for some in ratios]
    expected = ks_2samp(*rows).pvalue
    assert summary_of("forget_quality", model, retrained).value == expected
    assert summary_of("forget_quality_log10", model, retrained).value == pytest.approx(math.log10(expected), abs=1e-12)


def test_models_that_agree_cannot_be_told_apart():
    ratios = [0.1, 0.4, 0.7, 0.7]
    assert summary_of("forget_quality", ratios, ratios).value == 1.0
    assert summary_of("forget_quality_log10", ratios, ratios).value == 0.0


@pytest.mark.parametrize(("n", "h"), [(20, 20), (100, 61), (200, 200), (400, 200), (400, 390), (480, 480)])
def test_the_logarithm_is_scipys_where_the_p_value_is_a_double(n, h):
    low, high = np.linspace(0.1, 0.2, n), np.linspace(1.0, 2.0, n)
    model = np.concatenate([low[: n - h], high[:h]])  # h of n questions moved beyond all others
    p = ks_2samp(model, low).pvalue
    assert 1e-300 < p < 1e-3
    assert ks_log10_p(n, h) == pytest.approx(math.log10(p), abs=1e-9)
    assert summary_of("forget_quality_log10", model, low).value == pytest.approx(math.log10(p), abs=1e-9)


@pytest.mark.parametrize("n", [535, 1000, 3000])
def test_the_logarithm_is_finite_where_the_p_value_underflows(n):
    """Published code reports 0 there, or a logarithm that is minus infinity."""
    low, high = np.linspace(0.1, 0.2, n), np.linspace(1.0, 2.0, n)
    assert summary_of("forget_quality", low, high).value <= 1e-300
    # both orders of complete separation, of C(2n, n) orders: by Stirling's series
    expected = math.log10(2) - (math.lgamma(2 * n + 1) - 2 * math.lgamma(n + 1)) / math.log(10)
    assert summary_of("forget_quality_log10", low, high).value == pytest.approx(expected, rel=1e-9)


def test_published_scale_for_400_questions():
    # gradient ascent on TOFU forget10 is published as 1e-239: complete separation of 400 questions
    low, high = np.linspace(0.1, 0.2, 400), np.linspace(1.0, 2.0, 400)
    assert summary_of("forget_quality_log10", low, high).value == pytest.approx(-239.0, abs=0.5)


def test_other_questions_are_no_comparison():
    estimate = summarise("forget_quality", [questions([0.1, 0.2])], [questions([0.1, 0.2, 0.3])])
    assert estimate.reason == "only the retrained model was asked item 2"


def test_the_test_sees_no_difference_between_a_ratio_and_its_inverse():
    """Published code has the ratio both ways up; the test must not depend on it."""
    model, retrained = [0.2, 0.5, 0.9, 1.5], [0.3, 0.8, 1.1, 2.0]
    inverted = summary_of("forget_quality", [1 / one for one in model], [1 / one for one in retrained])
    assert inverted.value == pytest.approx(summary_of("forget_quality", model, retrained).value)
