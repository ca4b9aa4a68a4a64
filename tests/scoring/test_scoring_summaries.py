"""Model utility, perplexity, distance from chance and identity: by hand, and against numpy and resampling."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hmean

from tasks.scoring import score, summarise
from tasks.task import Sample


def answered(probability: float) -> Sample:
    return Sample("a", "x", token_logprobs=(math.log(probability),))


def generated(recalled: int) -> Sample:
    """`recalled` of ten words of the reference."""
    reference = "ash birch cedar elm fir hazel larch maple oak pine"
    return Sample("a", reference, generated=" ".join(reference.split()[:recalled]))


def chosen(right: float, *wrong: float) -> Sample:
    logprobs = tuple(math.log(p) for p in (right, *wrong))
    return Sample("a", "x", choice_logprobs=logprobs, choice_lengths=(1,) * len(logprobs), correct=0)


TABLES = [
    [answered(0.8)],
    [generated(9)],
    [chosen(0.5, 0.1, 0.4)],
    [chosen(0.4, 0.1, 0.3)],
    [generated(7)],
    [chosen(0.6, 0.2, 0.1)],
    [generated(8)],
]


def test_model_utility_is_the_harmonic_mean_of_nine():
    geometric = [0.8, 0.9, 1 - 0.04**0.5 / 0.5, 0.5, 1 - 0.03**0.5 / 0.4, 0.7, 0.6 / 0.9, 1 - 0.02**0.5 / 0.6, 0.8]
    arithmetic = [0.8, 0.9, 1 - 0.25 / 0.5, 0.5, 1 - 0.2 / 0.4, 0.7, 0.6 / 0.9, 1 - 0.15 / 0.6, 0.8]
    assert summarise("model_utility_geometric", TABLES).value == pytest.approx(hmean(geometric))
    assert summarise("model_utility_arithmetic", TABLES).value == pytest.approx(hmean(arithmetic))


def test_one_ability_that_is_gone_is_no_utility():
    for place, gone in ((1, [generated(0)]), (4, [generated(0)]), (2, [chosen(0.1, 0.5, 0.9)])):
        tables = [gone if index == place else table for index, table in enumerate(TABLES)]
        assert summarise("model_utility_geometric", tables).value == 0.0


def test_utility_lies_between_its_smallest_and_largest_term_and_its_error_is_that_of_normal_draws():
    rng = np.random.default_rng(3)

    def many(make, *ranges):
        rows = zip(*(rng.uniform(low, high, 200) for low, high in ranges), strict=True)
        return [replace(make(*row), item=str(index)) for index, row in enumerate(rows)]

    choices = (chosen, (0.5, 0.9), (0.05, 0.2), (0.05, 0.2))
    spoken = [replace(generated(int(k)), item=str(index)) for index, k in enumerate(rng.integers(6, 11, 200))]
    tables = [many(answered, (0.6, 1.0)), spoken, many(*choices), many(*choices), spoken, many(*choices), spoken]
    metrics = [
        (0, "probability"), (1, "rougeL_recall"), (2, "truth_ratio_geometric_retain"),
        (3, "normalised_probability"), (3, "truth_ratio_geometric_retain"), (4, "rougeL_recall"),
        (5, "normalised_probability"), (5, "truth_ratio_geometric_retain"), (6, "rougeL_recall"),
    ]  # fmt: skip
    terms = [score(metric, tables[place]) for place, metric in metrics]
    utility = summarise("model_utility_geometric", tables)
    assert utility.value == pytest.approx(hmean([term.value for term in terms]))
    drawn = hmean([rng.normal(term.value, term.stderr, 50_000) for term in terms], axis=0)
    assert utility.stderr == pytest.approx(np.std(drawn), rel=0.03)
    assert utility.n == 200


# Perplexity

LOGPROBS = st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=20), min_size=1, max_size=20)


def texts(rows) -> list[Sample]:
    return [Sample(str(index), "x", token_logprobs=tuple(row)) for index, row in enumerate(rows)]


@given(LOGPROBS)
@settings(deadline=None)
def test_perplexity_is_that_of_all_tokens_in_one_text(rows):
    together = np.concatenate(rows)
    assert summarise("perplexity", [texts(rows)]).value == pytest.approx(np.exp(-np.mean(together)))


def test_a_short_item_does_not_count_as_much_as_a_long_one():
    rows = [[-4.0], [-1.0] * 9]
    assert summarise("perplexity", [texts(rows)]).value == pytest.approx(math.exp(1.3))
    assert math.exp(score("loss", texts(rows)).value) == pytest.approx(math.exp(2.5))  # the mean of the items' losses


def test_a_model_that_guesses_has_the_perplexity_of_its_vocabulary():
    estimate = summarise("perplexity", [texts([[-math.log(100)] * 5] * 8)])
    assert estimate.value == pytest.approx(100)
    assert estimate.stderr == pytest.approx(0.0, abs=1e-9)


def test_error_of_the_perplexity_is_that_of_resampled_items():
    rng = np.random.default_rng(4)
    rows = [list(-rng.exponential(rng.uniform(1, 2), rng.integers(5, 60))) for _ in range(200)]
    totals, lengths = np.array([-sum(row) for row in rows]), np.array([len(row) for row in rows])
    picks = rng.integers(0, 200, (4000, 200))
    drawn = np.exp(totals[picks].sum(1) / lengths[picks].sum(1))
    assert summarise("perplexity", [texts(rows)]).stderr == pytest.approx(np.std(drawn), rel=0.1)


def test_a_perplexity_beyond_a_double_is_null():
    assert "no double" in summarise("perplexity", [texts([[-800.0]])]).reason
    assert summarise("perplexity", [texts([[-math.inf]])]).reason == "a value is not finite"


# Distance from chance


def letters(right: int, n: int, answers: int = 4) -> list[Sample]:
    """n questions of which `right` are answered rightly."""
    rows = []
    for index in range(n):
        best = 0 if index < right else 1
        logprobs = tuple(-1.0 if k == best else -2.0 for k in range(answers))
        rows.append(Sample(str(index), "x", choice_logprobs=logprobs, choice_lengths=(1,) * answers, correct=0))
    return rows


@pytest.mark.parametrize(("right", "expected"), [(20, 0.75), (5, 0.0), (0, 0.25), (10, 0.25)])
def test_below_chance_is_as_far_from_ignorance_as_above(right, expected):
    estimate = summarise("accuracy_distance", [letters(right, 20)])
    assert estimate.value == pytest.approx(expected)
    assert estimate.stderr == pytest.approx(score("accuracy", letters(right, 20)).stderr)


def test_chance_follows_the_number_of_answers():
    assert summarise("accuracy_distance", [letters(5, 10, answers=2)]).value == pytest.approx(0.0)


# Identity


def test_identical_outputs_are_counted_item_by_item():
    target = [Sample(str(index), "x", generated=text) for index, text in enumerate("abcd")]
    model = [replace(sample, generated="z" if sample.item == "2" else sample.generated) for sample in target]
    assert summarise("identical_outputs", [target], [target]).value == 1.0
    estimate = summarise("identical_outputs", [model], [target[::-1]])
    assert estimate.value == 0.75
    assert estimate.n == 4


def test_log_probabilities_are_identical_when_every_one_is():
    target = texts([[-1.0, -2.0], [-3.0]])
    model = [target[0], replace(target[1], token_logprobs=(-3.0000000001,))]
    assert summarise("identical_outputs", [model], [target]).value == 0.5


def test_two_silences_are_identical():
    silent = [Sample(str(index), "x", generated="") for index in range(3)]
    assert summarise("identical_outputs", [silent], [silent]).value == 1.0


def test_unchanged_answers_are_counted_item_by_item():
    before = [Sample(str(index), "x", generated=text) for index, text in enumerate("abcd")]
    after = [replace(sample, generated="z" if sample.item in "13" else sample.generated) for sample in before]
    estimate = summarise("unchanged_answers", [after], [before[::-1]])
    assert (estimate.value, estimate.n) == (0.5, 4)
    assert estimate.stderr == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)
    assert summarise("unchanged_answers", [before], None).reason == "no unattacked model was measured"


def test_of_several_answers_the_share_that_is_unchanged_counts():
    before = [Sample("0", "x", generated="a")]
    after = [Sample("0", "x", generated="b", sampled=("b", "a", "a", "c"))]
    assert summarise("unchanged_answers", [after], [before]).value == 0.5


def test_answers_that_are_not_text_are_neither_changed_nor_unchanged():
    (scored,) = texts([[-1.0]])
    assert (
        summarise("unchanged_answers", [[scored]], [[scored]]).reason == "sample 0 lacks what unchanged_answers reads"
    )
