"""open-unlearning's formulas (arXiv 2506.12618) where its code computes something else than our metrics.

It adds 1e-10 to the denominators of ratios. That changes nothing while answers have a probability of 1e-3. For a model
that gives every answer less than 1e-10, the truth ratio x of a retained fact goes to 0 and the score 1 - x to 1: a
wrecked model gets the best score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, harmonic_mean

from tasks.scoring import METRICS
from tasks.scoring import rouge as texts
from tasks.scoring.tables import PerSample, lacking, values
from tasks.task import Sample

EPSILON = 1e-10
NO_REFERENCE = 0.5
"""Assumed AUC of the retrained model where there is no log of such a model."""


ROUGE = ("rouge1_recall", "rougeL_recall", "rougeL_f1_stemmed")
"""Our metrics whose numbers `rouges` gives."""


def rouges(reference: str, generated: str) -> tuple[float, float, float]:
    """rouge-score's numbers of two texts of any script, also where our metrics have none; words are found once."""
    share, recall = texts.recall_1(reference, generated), texts.recall(reference, generated)
    return share, recall, texts.f1(reference, generated, stemmed=True)


def truth_ratio(sample: Sample) -> float:
    """exp(mean of wrong) / (exp(right) + 1e-10), from average log-probabilities, nats."""
    right, *wrong = logprobs(sample)
    return math.exp(fmean(wrong)) / (math.exp(right) + EPSILON)


def truth_ratio_forget(sample: Sample) -> float:
    """min(x, 1/(x + 1e-10)) of the truth ratio x."""
    ratio = truth_ratio(sample)
    return min(ratio, 1 / (ratio + EPSILON))


def truth_ratio_retain(sample: Sample) -> float:
    """max(0, 1 - x) of the truth ratio x."""
    return max(0.0, 1 - truth_ratio(sample))


def normalised_probability(sample: Sample) -> float:
    """P(right) / (sum of P over all answers + 1e-10)."""
    right, *wrong = map(math.exp, logprobs(sample))
    return right / (right + sum(wrong) + EPSILON)


def privacy_leakage(auc: float, retrained: float = NO_REFERENCE) -> float:
    """PrivLeak in percent, its denominator raised by 1e-10."""
    reference = 1 - retrained
    return 100 * ((1 - auc) - reference) / (reference + EPSILON)


def forget_quality(samples: Sequence[Sample], retrained: Sequence[Sample]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between both models' truth ratios."""
    from scipy.stats import ks_2samp

    model, anchor = ([truth_ratio(sample) for sample in table] for table in (samples, retrained))
    return float(ks_2samp(model, anchor).pvalue)


def model_utility(tables: Sequence[Sequence[Sample]], recalls: Sequence[float]) -> float:
    """The harmonic mean of nine means, from the tables of `tasks.scoring.utility.model_utility` in their order.

    Args:
        recalls: mean ROUGE-L recalls of the three tables of generated text, in the same order.
    """
    probability = METRICS["probability"].compute
    reads: tuple[tuple[PerSample, ...], ...] = (
        (probability,),
        (),
        (truth_ratio_retain,),
        (normalised_probability, truth_ratio_retain),
        (),
        (normalised_probability, truth_ratio_retain),
        (),
    )
    means = [
        fmean(values("model utility", compute, table))
        for table, metrics in zip(tables, reads, strict=True)
        for compute in metrics
    ]
    return harmonic_mean([*means, *recalls])


def logprobs(sample: Sample) -> tuple[float, ...]:
    """Average log-probabilities of a sample's answers, the right one first."""
    if sample.choice_logprobs is None:
        raise lacking(sample, "a comparison of answers")
    return sample.choice_logprobs
