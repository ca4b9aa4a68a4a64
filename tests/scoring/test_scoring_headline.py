"""Headlines: what they are at the anchors, what they are by hand, and what they can never be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.scoring import score
from tasks.scoring.estimate import Estimate
from tasks.scoring.headline import (
    GAP_IN_STDERRS,
    SMALLEST_GAP,
    anchor_gap,
    area,
    excess_recovery,
    harmonic_mean,
    knowledge,
    largest,
    share_kept,
    share_lost,
    smallest,
)
from tasks.task import Sample

TARGET, RETRAINED = Estimate(0.9, 0.02, 40), Estimate(0.3, 0.03, 40)
MISSING = Estimate.null("not measured")

UNIT = st.floats(0, 1)
STDERR = st.none() | st.floats(0, 0.5)
MEASURED = st.builds(Estimate, UNIT, STDERR, st.integers(1, 100))
MAYBE = MEASURED | st.just(MISSING)


# At the anchors and by hand


def test_the_target_knows_all_and_the_retrained_model_nothing():
    assert knowledge(TARGET, TARGET, RETRAINED).value == 1
    assert knowledge(RETRAINED, TARGET, RETRAINED).value == 0


def test_knowledge_lies_on_the_line_between_the_anchors():
    assert knowledge(Estimate(0.45, 0.0, 40), TARGET, RETRAINED).value == pytest.approx(0.25)
    assert knowledge(Estimate(0.15, 0.0, 40), TARGET, RETRAINED).value == pytest.approx(-0.25)


def test_a_metric_that_falls_with_knowledge_gives_the_same_knowledge():
    mirrored = [Estimate(1 - term.value, term.stderr, term.n) for term in (Estimate(0.45, 0.01, 40), TARGET, RETRAINED)]
    direct = knowledge(Estimate(0.45, 0.01, 40), TARGET, RETRAINED)
    assert knowledge(*mirrored).value == pytest.approx(direct.value)
    assert knowledge(*mirrored).stderr == pytest.approx(direct.stderr)


def test_what_an_attack_teaches_the_retrained_model_is_no_relapse():
    attacked_retrained = Estimate(0.7, 0.05, 40)
    assert excess_recovery(attacked_retrained, attacked_retrained, TARGET, RETRAINED).value == 0


def test_excess_recovery_of_a_worked_case():
    # the attack lifts the unlearned model to 0.75 and the retrained one to 0.45: 0.3 of a distance of 0.6 came back
    recovered = excess_recovery(Estimate(0.75, 0.0, 40), Estimate(0.45, 0.0, 40), TARGET, RETRAINED)
    assert recovered.value == pytest.approx(0.5)


def test_the_attack_that_does_nothing_recovers_what_was_not_forgotten():
    model = Estimate(0.5, 0.01, 40)
    assert excess_recovery(model, RETRAINED, TARGET, RETRAINED).value == knowledge(model, TARGET, RETRAINED).value


def test_shares_are_clipped():
    assert share_lost(Estimate(-0.2, 0.1, 9)).value == 1
    assert share_lost(Estimate(1.3, 0.1, 9)).value == 0
    assert share_lost(Estimate(0.25, 0.1, 9)) == Estimate(0.75, 0.1, 9)
    assert share_kept(Estimate(0.2, 0.0, 9), Estimate(0.8, 0.0, 9), chance=0.25).value == 0
    assert share_kept(Estimate(0.9, 0.0, 9), Estimate(0.8, 0.0, 9), chance=0.25).value == 1


def test_utility_counts_from_chance():
    assert share_kept(Estimate(0.5, 0.0, 9), Estimate(0.75, 0.0, 9), chance=0.25).value == pytest.approx(0.5)


def test_a_task_knows_what_it_knows_best_and_keeps_what_it_keeps_worst():
    low, high = Estimate(0.2, 0.01, 9), Estimate(0.7, 0.02, 9)
    assert largest([low, high]) == high
    assert smallest([low, high]) == low
    assert not largest([]).known
    assert not smallest([]).known


def test_harmonic_mean_of_worked_cases():
    assert harmonic_mean(*(Estimate(x, 0.0, 9) for x in (1.0, 0.5, 0.25))).value == pytest.approx(3 / 7)
    assert harmonic_mean(*(Estimate(x, 0.0, 9) for x in (0.6, 0.6, 0.6))).value == pytest.approx(0.6)
    assert harmonic_mean(*(Estimate(x, 0.0, 9) for x in (1.0, 1.0, 0.0))).value == 0


@pytest.mark.parametrize("tiny", [1e-100, 1e-200, 1e-300, 5e-324])
def test_harmonic_mean_of_a_share_that_is_all_but_zero(tiny):
    mean = harmonic_mean(Estimate(tiny, 0.1, 9), Estimate(0.9, 0.1, 9), Estimate(0.9, 0.1, 9))
    assert mean.value == pytest.approx(0, abs=1e-99)
    assert math.isfinite(mean.stderr)


def test_area_of_worked_curves():
    flat = {0: Estimate(0.4, 0.0, 9), 10: Estimate(0.4, 0.0, 9), 11: Estimate(0.4, 0.0, 9)}
    assert area(flat).value == pytest.approx(0.4)
    # Trapezoids of (0 + 0.6) / 2 * 10 and (0.6 + 1) / 2 * 30, over a length of 40.
    bent = {0: Estimate(0.0, 0.0, 9), 10: Estimate(0.6, 0.0, 8), 40: Estimate(1.0, 0.0, 9)}
    assert area(bent).value == pytest.approx((3 + 24) / 40)
    assert area(bent).n == 8
    at_once = {0: Estimate(1.0, 0.0, 9), 1: Estimate(1.0, 0.0, 9)}
    assert area(at_once).value == 1


def test_a_point_is_no_curve_and_a_gap_in_one_is_no_area():
    one = Estimate(0.4, 0.0, 9)
    assert area({0: one}).reason and area({}).reason
    assert area({0: one, 5: MISSING, 9: one}) == MISSING


# Anchors too close to be a unit


@pytest.mark.parametrize("retrained", [0.55, 0.5, 0.45])
def test_anchors_closer_than_the_smallest_gap_are_no_unit(retrained):
    low = Estimate(retrained, 0.0, 40)
    high = Estimate(retrained + 0.9 * SMALLEST_GAP, 0.0, 40)
    for headline in (knowledge(high, high, low), excess_recovery(high, low, high, low), anchor_gap(high, low)):
        assert headline.value is None
        assert "too close" in headline.reason
    assert anchor_gap(Estimate(retrained + 1.1 * SMALLEST_GAP, 0.0, 40), low).known


def test_anchors_within_their_noise_are_no_unit():
    gap = 0.4
    for stderr, known in ((1.1 * gap / GAP_IN_STDERRS, False), (0.9 * gap / GAP_IN_STDERRS, True)):
        target, retrained = Estimate(0.9, 0.6 * stderr, 40), Estimate(0.9 - gap, 0.8 * stderr, 40)  # 3-4-5
        assert anchor_gap(target, retrained).known is known
        assert anchor_gap(retrained, target).known is known  # a metric that falls with knowledge


def test_a_utility_whose_target_is_at_chance_is_null():
    kept = share_kept(Estimate(0.25, 0.0, 200), Estimate(0.26, 0.0, 200), chance=0.25)
    assert kept.value is None
    assert kept.reason


# Errors


DRAWS = 400_000  # the spread of so many draws is known to 1/sqrt(2 * DRAWS) = 0.1 %
SECOND_ORDER = 0.01  # what first-order propagation leaves out at errors of 2 % of the gap is well below 1 %


def drawn(term: Estimate, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(term.value, term.stderr, DRAWS)


@pytest.mark.parametrize("model", [0.85, 0.5, 0.25])
def test_error_of_knowledge_is_that_of_normal_draws(model):
    terms = Estimate(model, 0.012, 40), Estimate(0.9, 0.010, 40), Estimate(0.3, 0.008, 40)
    rng = np.random.default_rng(1)
    m, t, r = (drawn(term, rng) for term in terms)
    assert knowledge(*terms).stderr == pytest.approx(np.std((m - r) / (t - r)), rel=SECOND_ORDER)


@pytest.mark.parametrize("attacked", [0.95, 0.6, 0.4])
def test_error_of_excess_recovery_is_that_of_normal_draws(attacked):
    terms = Estimate(attacked, 0.012, 40), Estimate(0.4, 0.01, 40), Estimate(0.9, 0.010, 40), Estimate(0.3, 0.008, 40)
    rng = np.random.default_rng(2)
    a, b, t, r = (drawn(term, rng) for term in terms)
    assert excess_recovery(*terms).stderr == pytest.approx(np.std((a - b) / (t - r)), rel=SECOND_ORDER)


def test_error_of_utility_takes_chance_as_known():
    model, target = Estimate(0.5, 0.01, 40), Estimate(0.75, 0.01, 40)
    rng = np.random.default_rng(3)
    m, t = drawn(model, rng), drawn(target, rng)
    expected = np.std((m - 0.25) / (t - 0.25))
    assert share_kept(model, target, chance=0.25).stderr == pytest.approx(expected, rel=SECOND_ORDER)


def test_error_of_the_score_is_that_of_normal_draws():
    terms = Estimate(0.9, 0.01, 40), Estimate(0.5, 0.012, 40), Estimate(0.7, 0.008, 40)
    rng = np.random.default_rng(4)
    f, r, u = (drawn(term, rng) for term in terms)
    assert harmonic_mean(*terms).stderr == pytest.approx(np.std(3 / (1 / f + 1 / r + 1 / u)), rel=SECOND_ORDER)


def test_errors_of_terms_that_go_together_are_added():
    terms = [Estimate(0.9, 0.01, 40), Estimate(0.5, 0.012, 40), Estimate(0.7, 0.008, 40)]
    rng = np.random.default_rng(6)
    common = rng.normal(size=DRAWS)
    moved = [term.value + common * term.stderr for term in terms]
    mean = harmonic_mean(*terms, dependent=True)
    assert mean.value == harmonic_mean(*terms).value
    assert mean.stderr == pytest.approx(np.std(3 / sum(1 / x for x in moved)), rel=SECOND_ORDER)
    assert area(dict(zip((0, 3, 10), terms, strict=True))).stderr == pytest.approx(
        np.std(np.trapezoid(moved, [0, 3, 10], axis=0) / 10), rel=SECOND_ORDER
    )


# What holds for any measurements


def headlines(target, retrained, unlearned, attacked, attacked_retrained, utility, utility_target):
    """F, R, U and the score of one model, one attack beside `none`, and one utility probe against a chance of 0."""
    known = knowledge(unlearned, target, retrained)
    nothing = excess_recovery(unlearned, retrained, target, retrained)
    attack = excess_recovery(attacked, attacked_retrained, target, retrained)
    f, r = share_lost(known), share_lost(largest([nothing, attack]))
    u = share_kept(utility, utility_target, chance=0.0)
    return f, r, u, harmonic_mean(f, r, u)


@given(st.tuples(*[MAYBE] * 7))
@settings(deadline=None, max_examples=500)
def test_headlines_are_shares_or_null_with_a_reason(measurements):
    for headline in headlines(*measurements):
        if headline.known:
            assert 0 <= headline.value <= 1
            assert headline.stderr is None or 0 <= headline.stderr < math.inf
            assert headline.n >= 1
        else:
            assert headline.reason
            assert headline.stderr is None


@given(st.tuples(*[MEASURED] * 7))
@settings(deadline=None, max_examples=500)
def test_nothing_is_more_robust_than_forgotten_and_the_score_lies_between(measurements):
    f, r, u, total = headlines(*measurements)
    if f.known and r.known:
        assert r.value <= f.value
    if total.known:
        shares = f.value, r.value, u.value
        assert min(shares) * (1 - 1e-12) - 1e-200 <= total.value <= max(shares) * (1 + 1e-12)
        assert total.value == 0 or min(shares) > 0


@given(st.tuples(*[MEASURED] * 7), st.integers(0, 6))
@settings(deadline=None)
def test_one_missing_measurement_makes_the_score_null(measurements, missing):
    measurements = [MISSING if index == missing else term for index, term in enumerate(measurements)]
    assert headlines(*measurements)[-1].value is None


@given(st.lists(MEASURED, min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
def test_the_harmonic_mean_over_attacks_lies_between_the_worst_and_the_mean(recovered, rng):
    left = [share_lost(term) for term in recovered]
    mean = harmonic_mean(*left, dependent=True)
    shares = [term.value for term in left]
    assert min(shares) * (1 - 1e-12) - 1e-200 <= mean.value <= math.fsum(shares) / len(shares) + 1e-12
    assert harmonic_mean(*rng.sample(left, len(left)), dependent=True).value == pytest.approx(mean.value, abs=1e-12)
    assert mean.stderr >= harmonic_mean(*left).stderr * (1 - 1e-12)
    if min(shares) > 1e-200:
        assert mean.value == pytest.approx(len(shares) / sum(1 / share for share in shares))


CURVE = st.dictionaries(
    st.integers(0, 500), st.builds(Estimate, st.floats(-1, 2), STDERR, st.integers(1, 9)), min_size=2
)


@given(CURVE, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=300)
def test_an_area_is_a_mean_height_whatever_the_order_of_the_points(curve, rng):
    found = area(curve)
    heights = [term.value for term in curve.values()]
    assert min(heights) - 1e-12 <= found.value <= max(heights) + 1e-12
    assert area(dict(rng.sample(list(curve.items()), len(curve)))) == found
    points = sorted(curve)
    reference = np.trapezoid([curve[point].value for point in points], points) / (points[-1] - points[0])
    assert found.value == pytest.approx(reference, abs=1e-12)
    assert 0 <= found.stderr <= max(term.error for term in curve.values()) * (1 + 1e-12)


@given(CURVE, st.integers(501, 900))
@settings(deadline=None)
def test_a_curve_that_stays_where_it_ends_comes_closer_to_its_end(curve, later):
    last = curve[max(curve)]
    longer = area({**curve, later: last})
    assert abs(longer.value - last.value) <= abs(area(curve).value - last.value) + 1e-12


@given(st.lists(MAYBE, min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_missing_term_could_be_the_extreme_one(terms, rng):
    shuffled = rng.sample(terms, len(terms))
    known = all(term.known for term in terms)
    assert largest(shuffled).known is smallest(shuffled).known is known
    if known:
        assert largest(shuffled).value == max(term.value for term in terms)
        assert smallest(shuffled).value == min(term.value for term in terms)


def answered(probabilities: list[float]) -> list[Sample]:
    return [Sample(str(index), "x", token_logprobs=(math.log(p),)) for index, p in enumerate(probabilities)]


def test_the_order_of_the_samples_changes_no_bit_of_the_headlines():
    rng = np.random.default_rng(5)
    centres = 0.9, 0.2, 0.35, 0.5, 0.3, 0.8, 0.9
    groups = [answered(list(rng.uniform(centre - 0.1, centre + 0.1, 30))) for centre in centres]
    first = headlines(*(score("probability", group) for group in groups))
    assert all(headline.known for headline in first)
    assert 0 < first[-1].value < 1
    for _ in range(20):
        shuffled = [[group[index] for index in rng.permutation(len(group))] for group in groups]
        assert headlines(*(score("probability", group) for group in shuffled)) == first


def test_a_diverged_model_has_no_headline():
    fine = score("probability", answered([0.5, 0.6]))
    broken = score("probability", [replace(answered([0.5])[0], token_logprobs=(math.nan,))])
    high, low = Estimate(0.9, 0.0, 2), Estimate(0.1, 0.0, 2)
    f, _, _, total = headlines(high, low, broken, fine, low, fine, high)
    assert f.value is None
    assert total.reason == "a value is not finite"
