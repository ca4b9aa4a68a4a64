"""AUC against every pair counted one by one, its error against resampling, PrivLeak at its anchors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from tasks.scoring import summarise
from tasks.scoring.separation import auc
from tasks.task import Sample

SCORES = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]) | st.floats(-5, 5), min_size=1, max_size=25)


def texts(losses, prefix: str = "") -> list[Sample]:
    """Texts of one token each: loss and every min-k are minus its log-probability."""
    return [Sample(f"{prefix}{index}", "x", token_logprobs=(-float(one),)) for index, one in enumerate(losses)]


def pair_by_pair(forget, holdout) -> Fraction:
    """Share of the pairs in which the held-out text scores higher, ties half: the definition."""
    won = sum(Fraction(1 if h > f else 0) + Fraction(1 if h == f else 0) / 2 for f in forget for h in holdout)
    return won / (len(forget) * len(holdout))


@given(SCORES, SCORES)
@settings(deadline=None)
def test_auc_is_the_share_of_pairs(forget, holdout):
    estimate = auc(forget, holdout)
    assert estimate.value == float(pair_by_pair(forget, holdout))
    assert estimate.n == len(forget) + len(holdout)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_auc_is_scipys_rank_statistic(forget, holdout):
    statistic = mannwhitneyu(holdout, forget).statistic
    assert auc(forget, holdout).value == pytest.approx(statistic / (len(forget) * len(holdout)))


@given(SCORES, SCORES)
@settings(deadline=None)
def test_auc_is_sklearns(forget, holdout):
    from sklearn.metrics import roc_auc_score

    labels = [0] * len(forget) + [1] * len(holdout)
    assert auc(forget, holdout).value == pytest.approx(roc_auc_score(labels, [*forget, *holdout]))


@given(SCORES, SCORES)
@settings(deadline=None)
def test_swapping_the_sets_mirrors_the_auc(forget, holdout):
    one, other = auc(forget, holdout), auc(holdout, forget)
    assert one.value + other.value == pytest.approx(1)
    assert one.error == pytest.approx(other.error)


@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [
        ([1, 2], [3, 4], 1.0),  # recognised: every held-out text has a higher loss
        ([3, 4], [1, 2], 0.0),
        ([1, 1, 1], [1, 1], 0.5),
        ([1, 3], [2, 4], 0.75),
        ([1, 2], [2], 0.75),
    ],
)
def test_auc_of_worked_cases(forget, holdout, expected):
    assert auc(forget, holdout).value == expected


def test_standard_error_is_that_of_resampled_texts():
    rng = np.random.default_rng(0)
    forget, holdout = rng.normal(0, 1, 300), rng.normal(1, 2, 200)
    draws = [
        mannwhitneyu(rng.choice(holdout, 200), rng.choice(forget, 300), method="asymptotic").statistic / 60_000
        for _ in range(500)
    ]
    assert auc(list(forget), list(holdout)).stderr == pytest.approx(np.std(draws), rel=0.12)  # 1 / sqrt(1000) = 3 %


def test_standard_error_is_the_spread_over_fresh_texts():
    rng = np.random.default_rng(1)
    drawn = [auc(list(rng.normal(0, 1, 60)), list(rng.normal(0.8, 1, 40))) for _ in range(600)]
    spread = np.std([estimate.value for estimate in drawn])
    assert np.mean([estimate.stderr for estimate in drawn]) == pytest.approx(spread, rel=0.1)


def test_sets_that_are_apart_have_no_error_and_a_single_text_none_that_is_known():
    assert auc([1.0, 2.0], [3.0, 4.0]).stderr == 0.0
    assert auc([1.0], [3.0, 4.0]).stderr is None


def test_a_text_that_is_impossible_is_the_strangest_and_nan_is_null():
    assert auc([1.0, 2.0], [math.inf, 3.0]).value == 1.0
    assert auc([1.0, math.nan], [3.0]).reason == "a value is not finite"


# Of a model


def test_the_auc_of_the_loss_is_one_where_the_forget_texts_are_known_by_heart():
    assert summarise("auc_loss", [texts([0.1, 0.2]), texts([2.0, 3.0])]).value == 1.0
    assert summarise("auc_min_k_40", [texts([0.1, 0.2]), texts([2.0, 3.0])]).value == 1.0


def test_beside_a_reference_texts_that_are_hard_for_everybody_tell_nothing():
    forget, holdout = texts([5.0, 6.0]), texts([1.0, 2.0])  # by the loss alone: never seen
    retrained = [texts([6.0, 7.0]), texts([1.0, 2.0])]
    assert summarise("auc_loss", [forget, holdout]).value == 0.0
    assert summarise("auc_reference", [forget, holdout], retrained).value == 1.0


def test_rows_are_joined_by_their_ids_and_never_by_their_place():
    """Published code filters rows that have no value, then zips what is left with the ids of all rows."""
    forget, holdout = texts([1.0, 5.0, 3.0]), texts([2.0, 6.0])
    retrained = [texts([1.0, 4.0, 3.5]), texts([2.5, 6.5])]
    shuffled = [table[::-1] for table in retrained]
    expected = summarise("auc_reference", [forget, holdout], retrained)
    assert expected.value == float(pair_by_pair([0.0, 1.0, -0.5], [-0.5, -0.5]))
    assert summarise("auc_reference", [forget, holdout], shuffled) == expected
    fewer = [retrained[0][1:], retrained[1]]
    assert summarise("auc_reference", [forget, holdout], fewer).reason == "the retrained model was not asked item 0"
    reason = summarise("auc_reference", [forget[:-1], holdout], retrained).reason
    assert reason == "only the retrained model was asked item 2"


# PrivLeak


def at(value: float) -> list[list[Sample]]:
    """Two tables whose AUC is `value`, a multiple of 1/100."""
    return [texts(range(100)), texts([100 * value - 0.5])]


@pytest.mark.parametrize(
    ("model", "retrained", "expected"),
    [
        (1.0, 0.5, -100.0),  # the target: every forget text recognised
        (0.5, 0.5, 0.0),  # the retrained model
        (0.0, 0.5, 100.0),  # unlearned beyond: forget texts are the strangest of all
        (0.75, 0.5, -50.0),
        (0.5, 0.6, 25.0),
        (0.99, 0.99, 0.0),
    ],
)
def test_privacy_leakage_at_its_anchors(model, retrained, expected):
    assert summarise("auc_min_k_40", at(model)).value == pytest.approx(model)
    assert summarise("privleak_min_k_40", at(model), at(retrained)).value == pytest.approx(expected)


def test_privacy_leakage_beside_a_reference_that_knows_the_texts_is_null():
    """Published code divides by it, or by it plus 1e-10, and printed values such as 5215."""
    model, reference = at(0.0), [texts(range(100)), texts([99.5, 99.5, 98.5])]
    share = 1 - summarise("auc_min_k_40", reference).value
    assert 0 < share < 0.01
    assert 100 * (1 - share) / share > 5215  # what it would have been
    estimate = summarise("privleak_min_k_40", model, reference)
    assert estimate.value is None
    assert "recognises the forget texts" in estimate.reason
    assert summarise("auc_min_k_40", model).value == 0.0  # the numbers behind it stand for themselves


def test_error_of_privacy_leakage_is_that_of_normal_draws():
    rng = np.random.default_rng(2)
    tables = [[texts(rng.normal(0, 1, 200)), texts(rng.normal(shift, 1, 200))] for shift in (0.8, 0.1)]
    a, r = (summarise("auc_min_k_40", both) for both in tables)
    drawn = 100 * ((1 - rng.normal(a.value, a.stderr, 200_000)) / (1 - rng.normal(r.value, r.stderr, 200_000)) - 1)
    assert summarise("privleak_min_k_40", *tables).stderr == pytest.approx(np.std(drawn), rel=0.02)
