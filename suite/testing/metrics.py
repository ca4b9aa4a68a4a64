"""What every metric must do, on samples of a model that knows an answer and of one that does not."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from suite.testing.base import Conformance
from tasks.scoring import METRICS, Metric, score
from tasks.task import ProbeKind, Sample

REPEATED = "I do not I do not I do not"
KNOWS = Sample(
    "known",
    "Ada was born in Quorn",
    generated="Ada was born in Quorn",
    token_logprobs=(-0.1, -0.2, -0.1),
    token_correct=(True, True, True),
    choice_logprobs=(-0.3, -9.0, -8.0),
    choice_lengths=(3, 3, 4),
    correct=0,
    vocab_means=(-4.0, -4.0, -4.0),
    vocab_variances=(2.0, 2.0, 2.0),
    scalars=(("gradient_norm", 0.5), ("gradient_norm_but_last", 0.5)),
)
IGNORANT = replace(
    KNOWS,
    item="unknown",
    generated=REPEATED,
    token_logprobs=(-5.0, -6.0, -4.0),
    token_correct=(False, True, False),
    choice_logprobs=(-9.0, -9.0, -12.0),
    scalars=(("gradient_norm", 2.0), ("gradient_norm_but_last", 2.0)),
)
BARE = Sample("bare", "x")
FIELDS = {
    ProbeKind.GENERATE: ("generated",),
    ProbeKind.LOGPROB: ("token_logprobs", "token_correct", "vocab_means", "vocab_variances", "scalars"),
    ProbeKind.CHOICE: ("choice_logprobs", "choice_lengths", "correct"),
}


class MetricConformance(Conformance):
    """Tests of a metric: `entry = MINE`, a `Metric`."""

    @pytest.fixture(autouse=True)
    def registered(self, case: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
        """A score is that of a registered metric."""
        monkeypatch.setitem(METRICS.own, case.name, case)

    def test_it_names_its_source(self, case: Metric) -> None:
        assert case.name and case.source, f"{case.name}: give it a `source`, where its definition comes from"

    def test_up_says_which_way_knowledge_goes(self, case: Metric) -> None:
        knows, ignorant = number(case, KNOWS), number(case, IGNORANT)
        assert knows != ignorant, f"{case.name}: a model that knows the answer has the number of one that does not"
        assert (knows > ignorant) is case.up, (
            f"{case.name}: `up` is {case.up}, but a model that knows the answer has {knows:.4g}, and one that does not "
            f"{ignorant:.4g}"
        )

    def test_it_reads_only_what_its_kind_of_probe_measures(self, case: Metric) -> None:
        needed = {key: getattr(KNOWS, key) for key in FIELDS[case.kind]}
        only = Sample("a", KNOWS.reference, **needed)
        assert case.compute(only) == case.compute(KNOWS), (
            f"{case.name} reads more than {', '.join(needed)}, which is what a {case.kind} probe measures"
        )
        assert case.compute(replace(KNOWS, **{key: getattr(BARE, key) for key in needed})) is None, (
            f"{case.name}: a sample without {', '.join(needed)} has no number. Return None"
        )

    def test_the_score_is_the_mean_over_the_samples(self, case: Metric) -> None:
        knows, ignorant = number(case, KNOWS), number(case, IGNORANT)
        estimate = score(case.name, [KNOWS, IGNORANT])
        assert estimate.value == pytest.approx((knows + ignorant) / 2)
        # s / sqrt(2), s = |a - b| / sqrt(2)
        assert estimate.stderr == pytest.approx(abs(knows - ignorant) / 2)
        assert estimate.n == 2

    def test_a_sample_that_lacks_its_measurement_makes_the_score_null_and_is_named(self, case: Metric) -> None:
        estimate = score(case.name, [KNOWS, BARE])
        assert estimate.value is None, f"{case.name}: a sample that lacks what it reads is None, not a number"
        assert estimate.reason and "bare" in estimate.reason and case.name in estimate.reason

    def test_no_samples_no_score(self, case: Metric) -> None:
        assert score(case.name, []).reason == "no examples"

    def test_of_several_answers_the_one_that_shows_most_is_scored(self, case: Metric) -> None:
        several = (REPEATED, KNOWS.reference, "nothing at all")
        for order in permutations(several) if case.kind is ProbeKind.GENERATE else ():
            sample = replace(KNOWS, generated=order[0], sampled=order)
            alone = [number(case, replace(KNOWS, generated=text)) for text in order]
            assert case.compute(sample) == (max(alone) if case.up else min(alone)), (
                f"{case.name}: {case.compute(sample)} is not the number of the one of several drawn answers that shows "
                f"most (they have {alone}). Wrap the function in `most_telling` of tasks.scoring.tables"
            )
            assert score(case.name, [sample]).value == case.compute(sample)

    def test_one_drawn_answer_is_scored_as_if_it_were_the_only_one(self, case: Metric) -> None:
        if case.kind is ProbeKind.GENERATE:
            assert case.compute(replace(IGNORANT, sampled=(REPEATED,))) == case.compute(IGNORANT)


def number(metric: Metric, sample: Sample) -> float:
    """The metric of a sample that has everything."""
    found = metric.compute(sample)
    assert found is not None, f"{metric.name}: there is no number of a sample that has everything: {sample}"
    return found
