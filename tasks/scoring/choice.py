"""Metrics of multiple-choice items: accuracy, and TOFU's truth ratio in both published variants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tasks.scoring.estimate import Estimate, mean
from tasks.scoring.tables import PerSample, Table, lacking
from tasks.task import Sample

REMEMBERED = 4096
"""Size of the cache of normalised answers: several metrics read the same samples one after another."""


def choice_accuracy(logprobs: Sequence[float], correct: int) -> float:
    """1 if the right answer is the most likely, else 0; 1/k if k answers are tied at the top, the right one among them.

    NaN if a log-probability is NaN: comparisons with NaN would pick a winner by position.
    """
    if any(map(math.isnan, logprobs)):
        return math.nan
    best = max(logprobs)
    top = [index for index, value in enumerate(logprobs) if value == best]
    return 1 / len(top) if correct in top else 0.0


def truth_ratio_geometric(right: float, wrong: Sequence[float]) -> float:
    """exp(mean of wrong) / exp(right), from length-normalised log-probabilities, in nats.

    The geometric mean of the wrong answers' probabilities over the right one's, as open-unlearning and TOFU's forget
    quality compute it; 0 for a model that is certain, 1 for one that cannot tell.
    """
    return _exp(math.fsum(wrong) / len(wrong) - right)


def truth_ratio_arithmetic(right: float, wrong: Sequence[float]) -> float:
    """mean(exp(wrong)) / exp(right): the arithmetic mean, as TOFU's model utility computes it."""
    return math.fsum([_exp(value - right) for value in wrong]) / len(wrong)


def accuracy(sample: Sample) -> float | None:
    if sample.choice_logprobs is None or sample.correct is None:
        return None
    return choice_accuracy(sample.choice_logprobs, sample.correct)


def geometric(sample: Sample) -> float | None:
    right_and_wrong = _normalised(sample.choice_logprobs, sample.choice_lengths, sample.correct)
    return None if right_and_wrong is None else truth_ratio_geometric(*right_and_wrong)


def arithmetic(sample: Sample) -> float | None:
    right_and_wrong = _normalised(sample.choice_logprobs, sample.choice_lengths, sample.correct)
    return None if right_and_wrong is None else truth_ratio_arithmetic(*right_and_wrong)


def normalised_probability(sample: Sample) -> float | None:
    """P(right) / sum of P over all answers, P length-normalised: TOFU's `Prob` where wrong options are given."""
    right_and_wrong = _normalised(sample.choice_logprobs, sample.choice_lengths, sample.correct)
    if right_and_wrong is None:
        return None
    right, wrong = right_and_wrong
    return 1 / (1 + math.fsum([_exp(value - right) for value in wrong]))


def closeness_to_one(compute: PerSample) -> PerSample:
    """min(x, 1/x) of a truth ratio x, averaged over the forget set. 1 where right and wrong are equally likely."""

    def metric(sample: Sample) -> float | None:
        ratio = compute(sample)
        return None if ratio is None else min(ratio, 1 / ratio) if ratio else 0.0

    return metric


def truth(compute: PerSample) -> PerSample:
    """max(0, 1 - x) of a truth ratio x, averaged over the retain set. 1 for a model that is certain."""

    def metric(sample: Sample) -> float | None:
        ratio = compute(sample)
        return None if ratio is None else max(1 - ratio, 0.0)  # in this order NaN stays NaN

    return metric


def accuracy_distance(tables: Sequence[Table], _: Sequence[Table]) -> Estimate:
    """|accuracy - 1 / number of answers|, the distance from chance: avoiding the right letter shows knowledge too."""
    (table,) = tables
    differences: list[float] = []
    for sample in table:
        if sample.choice_logprobs is None or sample.correct is None:
            raise lacking(sample, "accuracy_distance")
        right = choice_accuracy(sample.choice_logprobs, sample.correct)
        differences.append(right - 1 / len(sample.choice_logprobs))
    signed = mean(differences)
    return signed if signed.value is None else Estimate(abs(signed.value), signed.stderr, signed.n)


@lru_cache(REMEMBERED)
def _normalised(
    logprobs: tuple[float, ...] | None, lengths: tuple[int, ...] | None, correct: int | None
) -> tuple[float, tuple[float, ...]] | None:
    """Mean log-probability per token of the right answer, and of the wrong ones."""
    if logprobs is None or lengths is None or correct is None:
        return None
    means = [total / length for total, length in zip(logprobs, lengths, strict=True)]
    right = means.pop(correct)
    return (right, tuple(means)) if means else None


def _exp(value: float) -> float:
    return math.exp(min(value, 300.0))  # e^300 is as good as infinite, and its square, in a variance, is still a double
