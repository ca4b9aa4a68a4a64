"""Membership scores against numpy written from the definitions, by hand, and where published code goes wrong."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.scoring import METRICS
from tasks.scoring.membership import mean_of_lowest
from tasks.task import Sample

LOGPROB = st.floats(-30, 0)
TOKEN = st.tuples(LOGPROB, st.floats(-15, 0), st.floats(0, 20))
LOGPROB_METRICS = ("loss", "zlib", "min_k_20", "min_k_40", "min_k_plus_plus_40")


def text(*tokens: tuple[float, float, float], reference: str = "x") -> Sample:
    logprobs, means, variances = (tuple(column) for column in zip(*tokens, strict=True))
    return Sample("a", reference, token_logprobs=logprobs, vocab_means=means, vocab_variances=variances)


def value_of(metric: str, sample: Sample) -> float | None:
    return METRICS[metric].compute(sample)


@given(st.lists(TOKEN, min_size=1, max_size=40), st.text(st.characters(codec="utf-8"), max_size=60))
@settings(deadline=None)
def test_scores_are_those_of_numpy(tokens, reference):
    logprobs, means, variances = np.array(tokens).T
    standardised = (logprobs - means) / np.sqrt(np.maximum(variances, 1e-6))
    n = len(tokens)
    expected = {
        "loss": -np.mean(logprobs),
        "zlib": -np.mean(logprobs) / len(zlib.compress(reference.encode("utf-8"))),
        "min_k_20": -np.mean(np.sort(logprobs)[: max(1, n // 5)]),
        "min_k_40": -np.mean(np.sort(logprobs)[: max(1, 2 * n // 5)]),
        "min_k_plus_plus_40": -np.mean(np.sort(standardised)[: max(1, 2 * n // 5)]),
    }
    for metric, value in expected.items():
        assert value_of(metric, text(*tokens, reference=reference)) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_worked_case():
    # log p of -1 ... -5; 40 % of five tokens are two, 20 % are one
    sample = text(*((-float(k), -3.0, 4.0) for k in range(1, 6)), reference="")
    assert value_of("loss", sample) == 3.0
    assert value_of("zlib", sample) == pytest.approx(3 / 8)  # of no bytes zlib makes eight
    assert value_of("min_k_20", sample) == 5.0
    assert value_of("min_k_40", sample) == 4.5
    assert value_of("min_k_plus_plus_40", sample) == pytest.approx(0.75)  # (-5 + 3) / 2 and (-4 + 3) / 2


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (2, 1), (4, 1), (5, 2), (7, 2), (10, 4), (15, 6)])
def test_the_share_of_tokens_is_rounded_down_to_at_least_one(n, kept):
    lowest = list(range(n))
    assert mean_of_lowest(lowest, 40) == pytest.approx(sum(range(kept)) / kept)


def test_zlib_counts_bytes_of_utf_8_and_not_letters():
    ascii_, accents = (text((-1.0, 0.0, 1.0), reference=letters) for letters in ("abcdefgh", "äöüßéèêç"))
    assert value_of("zlib", accents) == pytest.approx(1 / len(zlib.compress("äöüßéèêç".encode())))
    assert value_of("zlib", accents) < value_of("zlib", ascii_)


def test_a_certain_distribution_does_not_divide_by_zero():
    assert math.isfinite(value_of("min_k_plus_plus_40", text((0.0, 0.0, 0.0))))
    assert value_of("min_k_plus_plus_40", text((-2.0, -1.0, 0.0))) == pytest.approx(1000)  # 1 / sqrt(1e-6)


@given(st.lists(TOKEN, min_size=2, max_size=20), st.floats(0.1, 5))
@settings(deadline=None)
def test_a_less_likely_text_never_looks_more_like_a_member(tokens, nats):
    likely = text(*tokens)
    unlikely = replace(likely, token_logprobs=tuple(logp - nats for logp in likely.token_logprobs))
    for metric in LOGPROB_METRICS:
        assert value_of(metric, unlikely) > value_of(metric, likely) - 1e-9


@pytest.mark.parametrize("metric", LOGPROB_METRICS)
def test_an_answer_without_tokens_has_no_score(metric):
    empty = Sample("a", "", token_logprobs=(), token_correct=(), vocab_means=(), vocab_variances=())
    assert value_of(metric, empty) is None


@pytest.mark.parametrize("metric", LOGPROB_METRICS)
@pytest.mark.parametrize("place", range(3))
def test_a_nan_is_not_sorted_away(metric, place):
    logprobs = [-1.0, -2.0, -3.0]
    logprobs[place] = math.nan
    assert math.isnan(value_of(metric, text(*((logp, -1.0, 1.0) for logp in logprobs))))


def test_moments_that_belong_to_other_tokens_are_refused():
    with pytest.raises(ValueError):
        value_of("min_k_plus_plus_40", replace(text((-1.0, -1.0, 1.0)), vocab_means=(-1.0, -1.0)))


def test_the_gradient_norm_is_found_among_the_scalars():
    sample = Sample("a", "x", scalars=(("reference_loss", 3.0), ("gradient_norm", 0.5)))
    assert value_of("gradient_norm", sample) == 0.5
    assert value_of("gradient_norm", replace(sample, scalars=(("reference_loss", 3.0),))) is None


# Where published code goes wrong


@pytest.mark.parametrize("metric", [*LOGPROB_METRICS, "exact_memorization", "extraction_strength", "probability"])
def test_the_last_token_counts(metric):
    """Published code drops the last labelled token as an end-of-text mark, also where running text has none."""
    whole = replace(text(*[(-1.0, -2.0, 1.0)] * 6), token_correct=(True,) * 6)
    strange = replace(whole, token_logprobs=(-1.0,) * 5 + (-9.0,), token_correct=(True,) * 5 + (False,))
    assert value_of(metric, strange) != value_of(metric, whole)
    shorter = {key: getattr(strange, key)[:-1] for key in ("token_logprobs", "token_correct", "vocab_means")}
    shorter["vocab_variances"] = strange.vocab_variances[:-1]
    assert value_of(metric, replace(strange, **shorter)) == value_of(metric, whole)
