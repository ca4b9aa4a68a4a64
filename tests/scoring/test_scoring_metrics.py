"""Facts that hold for every metric of the registry."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tasks.scoring import METRICS, score
from tasks.task import ProbeKind, Sample

KNOWS = Sample(
    "known",
    "Ada was born in Quorn",
    generated="Ada was born in Quorn",
    token_logprobs=(-0.1, -0.2, -0.1),
    token_correct=(True, True, True),
    choice_logprobs=(-0.3, -9.0, -8.0),
    choice_lengths=(3, 3, 4),
    correct=0,
)
IGNORANT = replace(
    KNOWS,
    item="unknown",
    generated="I do not know",
    token_logprobs=(-5.0, -6.0, -4.0),
    token_correct=(False, True, False),
    choice_logprobs=(-9.0, -9.0, -12.0),
)
FIELDS = {
    ProbeKind.GENERATE: ("generated",),
    ProbeKind.LOGPROB: ("token_logprobs", "token_correct"),
    ProbeKind.CHOICE: ("choice_logprobs", "choice_lengths", "correct"),
}

every_metric = pytest.mark.parametrize("name", METRICS)


@every_metric
def test_a_metric_is_registered_under_its_name_with_its_source(name):
    assert METRICS[name].name == name
    assert METRICS[name].source


@every_metric
def test_up_says_which_way_knowledge_goes(name):
    knows, ignorant = METRICS[name].of(KNOWS), METRICS[name].of(IGNORANT)
    assert (knows > ignorant) is METRICS[name].up
    assert knows != ignorant


@every_metric
def test_a_metric_reads_only_what_its_kind_of_probe_measures(name):
    metric = METRICS[name]
    needed = {key: getattr(KNOWS, key) for key in FIELDS[metric.kind]}
    assert metric.of(Sample("a", KNOWS.reference, **needed)) == metric.of(KNOWS)
    assert metric.of(replace(KNOWS, **dict.fromkeys(needed))) is None


@every_metric
def test_the_score_is_the_mean_over_the_samples(name):
    of = METRICS[name].of
    estimate = score(name, [KNOWS, IGNORANT])
    assert estimate.value == pytest.approx((of(KNOWS) + of(IGNORANT)) / 2)
    assert estimate.stderr == pytest.approx(abs(of(KNOWS) - of(IGNORANT)) / 2)  # s / sqrt(2), s = |a - b| / sqrt(2)
    assert estimate.n == 2


@every_metric
def test_a_sample_that_lacks_its_measurement_makes_the_score_null_and_is_named(name):
    estimate = score(name, [KNOWS, Sample("bare", "x")])
    assert estimate.value is None
    assert "bare" in estimate.reason
    assert name in estimate.reason


@every_metric
def test_no_samples_no_score(name):
    assert score(name, []).reason == "no examples"


@pytest.mark.parametrize("name", ["probability", "truth_ratio_geometric", "normalised_probability"])
def test_a_model_that_computes_nan_has_no_score(name):
    broken = replace(KNOWS, token_logprobs=(math.nan, -1.0, -1.0), choice_logprobs=(math.nan, -1.0, -1.0))
    assert score(name, [broken, KNOWS]).value is None


def test_an_unknown_metric_is_refused():
    with pytest.raises(KeyError):
        score("rougel", [KNOWS])


@pytest.mark.parametrize(("ratio", "forget", "retain"), [(0.25, 0.25, 0.75), (1.0, 1.0, 0.0), (4.0, 0.25, 0.0)])
def test_aggregates_of_the_truth_ratio(ratio, forget, retain):
    sample = replace(KNOWS, choice_logprobs=(math.log(0.1), math.log(0.1 * ratio)), choice_lengths=(1, 1))
    assert METRICS["truth_ratio_geometric_forget"].of(sample) == pytest.approx(forget)
    assert METRICS["truth_ratio_geometric_retain"].of(sample) == pytest.approx(retain)
    assert METRICS["truth_ratio_arithmetic_retain"].of(sample) == pytest.approx(retain)


def test_a_certain_model_has_a_forget_ratio_of_zero():
    sample = replace(KNOWS, choice_logprobs=(0.0, -math.inf), choice_lengths=(1, 1))
    assert METRICS["truth_ratio_geometric_forget"].of(sample) == 0.0
