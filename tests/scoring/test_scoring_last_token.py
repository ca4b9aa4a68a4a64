"""Variants of open-unlearning, which leave out the last token: against its loops, written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.scoring import METRICS, score, summarise
from tasks.task import Sample

NUMBER = st.floats(-30, -0.001)


@st.composite
def samples(draw) -> Sample:
    n = draw(st.integers(2, 12))
    columns = [tuple(draw(st.lists(NUMBER, min_size=n, max_size=n))) for _ in range(3)]
    right = tuple(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    variances = tuple(-value for value in columns[2])
    return Sample(
        "a", "", token_logprobs=columns[0], token_correct=right, vocab_means=columns[1], vocab_variances=variances
    )


def theirs(sample: Sample) -> dict[str, float]:
    """As its code goes: the labels from the first to the last but one, then a loop over prefixes."""
    logprobs, right, means, variances = (
        np.array(column)[:-1]
        for column in (sample.token_logprobs, sample.token_correct, sample.vocab_means, sample.vocab_variances)
    )
    n = len(right)
    for k in range(n):
        if all(right[k:]):
            break
    lowest = max(1, int(0.4 * n))
    standard = (logprobs - means) / np.sqrt(np.clip(variances, 1e-6, None))
    return {
        "exact_memorization": right.mean(),
        "extraction_strength": 1 - k / n,
        "min_k_40": -np.sort(logprobs)[:lowest].mean(),
        "min_k_plus_plus_40": -np.sort(standard)[:lowest].mean(),
    }


@given(samples())
@settings(deadline=None)
def test_the_variants_are_what_its_loops_compute(sample):
    for name, number in theirs(sample).items():
        assert METRICS[f"{name}_open_unlearning"].compute(sample) == pytest.approx(number, rel=1e-9)


def test_the_plain_metric_counts_the_last_token():
    sample = Sample("a", "", token_correct=(False, True, True, False), token_logprobs=(-1.0, -1.0, -1.0, -9.0))
    assert METRICS["extraction_strength"].compute(sample) == 0
    assert METRICS["extraction_strength_open_unlearning"].compute(sample) == pytest.approx(2 / 3)
    wrong = replace(sample, token_correct=(True, True, False, True))
    assert METRICS["extraction_strength_open_unlearning"].compute(wrong) == pytest.approx(1 / 3), "theirs is never 0"
    assert METRICS["min_k_40"].compute(sample) == 9
    assert METRICS["min_k_40_open_unlearning"].compute(sample) == 1


def test_an_answer_of_one_token_has_no_number():
    sample = Sample("a", "", token_correct=(True,), token_logprobs=(-1.0,))
    assert score("exact_memorization_open_unlearning", [sample]).value is None
    assert score("extraction_strength_open_unlearning", [sample]).value is None
    assert score("exact_memorization", [sample]).value == 1


def test_the_gradient_norm_without_the_last_token_is_another_scalar():
    sample = Sample("a", "", scalars=(("gradient_norm", 1.0), ("gradient_norm_but_last", 2.0)))
    assert METRICS["gradient_norm_open_unlearning"].compute(sample) == 2
    forget, holdout = ([replace(sample, scalars=(("gradient_norm_but_last", n),))] for n in (1.0, 3.0))
    assert summarise("auc_gradient_norm_open_unlearning", [forget, holdout]).value == 1
    without = [replace(sample, scalars=(("gradient_norm", 1.0),))]
    assert summarise("auc_gradient_norm_open_unlearning", [without, without]).value is None


def test_membership_without_the_last_token():
    def texts(first: float, last: float) -> list[Sample]:
        return [Sample(f"a{i}", "", token_logprobs=(first - i, last)) for i in range(4)]

    forget, holdout = texts(-1, -20), texts(-10, -2)
    assert summarise("auc_min_k_40", [forget, holdout]).value < 0.5 < 1
    assert summarise("auc_min_k_40_open_unlearning", [forget, holdout]).value == 1
    leak = summarise("privleak_min_k_40_open_unlearning", [forget, holdout], [holdout, holdout])
    assert leak.value == -100
