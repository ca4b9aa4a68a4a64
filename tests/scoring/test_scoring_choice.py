"""Metrics of several answers against numpy written from the definitions, which works with probabilities, not logs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.scoring import METRICS, score
from tasks.scoring.choice import choice_accuracy, truth_ratio_arithmetic, truth_ratio_geometric
from tasks.task import Sample

LOGPROB = st.floats(-20, -0.01)


def sample_of(logprobs, lengths=None, correct=0, item="a"):
    return Sample(
        item,
        "x",
        choice_logprobs=tuple(logprobs),
        choice_lengths=tuple(lengths or [1] * len(logprobs)),
        correct=correct,
    )


@pytest.mark.parametrize(
    ("logprobs", "correct", "expected"),
    [
        ([-1.0, -2.0, -3.0, -4.0], 0, 1.0),
        ([-1.0, -2.0, -3.0, -4.0], 3, 0.0),
        ([-1.0, -1.0, -3.0, -4.0], 1, 1 / 2),
        ([-1.0, -1.0, -1.0, -4.0], 0, 1 / 3),
        ([-1.0, -1.0, -1.0, -1.0], 2, 1 / 4),
        ([-1.0, -1.0, -3.0, -4.0], 2, 0.0),  # tied at the top without the right one
        ([-math.inf, -2.0], 1, 1.0),
        ([-math.inf, -math.inf], 0, 1 / 2),
    ],
)
def test_accuracy_shares_ties(logprobs, correct, expected):
    assert choice_accuracy(logprobs, correct) == pytest.approx(expected)


@given(st.lists(st.sampled_from([-1.0, -2.0, -3.0]), min_size=1, max_size=5))
@settings(deadline=None)
def test_over_all_right_answers_accuracy_adds_up_to_one(logprobs):
    assert math.fsum(choice_accuracy(logprobs, correct) for correct in range(len(logprobs))) == pytest.approx(1)


def test_a_model_that_cannot_tell_is_at_chance():
    rows = [sample_of([-7.0] * 4, correct=k % 4, item=str(k)) for k in range(40)]
    assert score("accuracy", rows).value == pytest.approx(0.25)


def test_accuracy_of_a_model_that_computes_nan_is_null():
    for logprobs in ([math.nan, -1.0], [-1.0, math.nan]):
        for correct in (0, 1):
            estimate = score("accuracy", [sample_of(logprobs, correct=correct)])
            assert estimate.value is None
            assert estimate.reason == "a value is not finite"


@given(LOGPROB, st.lists(LOGPROB, min_size=1, max_size=6))
@settings(deadline=None)
def test_truth_ratios_are_ratios_of_mean_probabilities(right, wrong):
    p, q = np.exp(right), np.exp(wrong)
    assert truth_ratio_geometric(right, wrong) == pytest.approx(np.prod(q) ** (1 / len(q)) / p, rel=1e-9)
    assert truth_ratio_arithmetic(right, wrong) == pytest.approx(np.mean(q) / p, rel=1e-9)


@given(LOGPROB, st.lists(LOGPROB, min_size=1, max_size=6))
@settings(deadline=None)
def test_the_geometric_ratio_is_never_above_the_arithmetic_one(right, wrong):
    assert truth_ratio_geometric(right, wrong) <= truth_ratio_arithmetic(right, wrong) * (1 + 1e-12)


def test_truth_ratios_of_worked_cases():
    right, wrong = math.log(0.5), [math.log(0.4), math.log(0.1)]
    assert truth_ratio_geometric(right, wrong) == pytest.approx(0.4)  # sqrt(0.04) / 0.5
    assert truth_ratio_arithmetic(right, wrong) == pytest.approx(0.5)  # 0.25 / 0.5


@given(st.lists(st.tuples(LOGPROB, st.integers(1, 30)), min_size=2, max_size=6), st.data())
@settings(deadline=None)
def test_answers_of_different_lengths_compare_per_token(answers, data):
    correct = data.draw(st.integers(0, len(answers) - 1))
    sample = sample_of([mean * length for mean, length in answers], [length for _, length in answers], correct)
    probabilities = np.exp([mean for mean, _ in answers])
    right, wrong = probabilities[correct], np.delete(probabilities, correct)
    expected = {
        "truth_ratio_geometric": np.prod(wrong) ** (1 / len(wrong)) / right,
        "truth_ratio_arithmetic": wrong.mean() / right,
        "normalised_probability": right / probabilities.sum(),
    }
    for metric, value in expected.items():
        assert METRICS[metric].compute(sample) == pytest.approx(value, rel=1e-9)


@given(st.lists(st.floats(-1e5, 0), min_size=2, max_size=6), st.sampled_from(sorted(METRICS)))
@settings(deadline=None)
def test_no_model_however_wrecked_breaks_a_metric(logprobs, metric):
    value = METRICS[metric].compute(sample_of(logprobs))
    assert value is None or math.isfinite(value)


def test_a_mean_survives_ratios_at_the_edge_of_a_double():
    estimate = score("truth_ratio_geometric", [sample_of([-1e5, -1.0]), sample_of([-1.0, -1.0], item="b")])
    assert estimate.value > 1e100
    assert math.isfinite(estimate.stderr)


def test_a_right_answer_that_stands_alone_has_no_ratio():
    assert METRICS["truth_ratio_geometric"].compute(sample_of([-1.0])) is None
    assert METRICS["normalised_probability"].compute(sample_of([-1.0])) is None
