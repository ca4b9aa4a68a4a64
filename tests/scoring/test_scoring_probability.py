"""Teacher-forced metrics against worked cases and against a search over every prefix."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean

from tasks.scoring import METRICS
from tasks.scoring.probability import answer_probability, exact_memorization, extraction_strength
from tasks.task import Sample

FLAGS = st.lists(st.booleans(), min_size=1, max_size=12)


def shortest_prefix(predicted: list[bool]) -> int:
    """Smallest k of 0..n with every prediction after the first k right: the definition, tried one k at a time."""
    return next(k for k in range(len(predicted) + 1) if all(predicted[k:]))


def test_extraction_strength_is_one_minus_the_shortest_prefix_for_every_short_answer():
    answers = [list(flags) for n in range(1, 9) for flags in product([False, True], repeat=n)]
    assert len(answers) == 2**9 - 2
    for predicted in answers:
        assert extraction_strength(predicted) == pytest.approx(1 - shortest_prefix(predicted) / len(predicted))


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([True] * 4, 1.0),  # completed from nothing
        ([True, True, True, False], 0.0),  # the last token is wrong: no prefix short of the whole answer helps
        ([False, True, True, True], 0.75),
        ([True, False, True, True], 0.5),
    ],
)
def test_extraction_strength_of_worked_cases(predicted, expected):
    assert extraction_strength(predicted) == expected


@given(FLAGS)
@settings(deadline=None)
def test_no_more_can_be_extracted_than_is_memorized(predicted):
    assert 0 <= extraction_strength(predicted) <= exact_memorization(predicted) <= 1


def test_exact_memorization_counts_right_tokens():
    assert exact_memorization([True, False, True, True]) == 0.75


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=40))
@settings(deadline=None)
def test_answer_probability_is_the_geometric_mean_of_the_token_probabilities(logprobs):
    assert answer_probability(logprobs) == pytest.approx(gmean(np.exp(logprobs)), rel=1e-9)


def test_answer_probability_does_not_fall_with_length():
    assert answer_probability([math.log(0.3)] * 50) == pytest.approx(0.3)


def test_an_impossible_token_makes_the_answer_impossible():
    assert answer_probability([-math.inf, -1.0]) == 0.0


@pytest.mark.parametrize("metric", ["probability", "exact_memorization", "extraction_strength"])
@pytest.mark.parametrize("sample", [Sample("a", "x"), Sample("a", "x", token_logprobs=(), token_correct=())])
def test_an_answer_without_tokens_has_no_number(metric, sample):
    assert METRICS[metric].compute(sample) is None
