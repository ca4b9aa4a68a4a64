"""Membership scores of a text: does the model treat it as one that it was trained on? Higher means less so.

All of them read every token of the answer, the last one included. `tasks.scoring.separation` turns the scores of two
sets of texts into one number.
"""

from __future__ import annotations

import math
import zlib as compression
from collections.abc import Sequence
from functools import lru_cache

from tasks.task import Sample

SMALLEST_VARIANCE = 1e-6
"""Variance of log p over the vocabulary, nats^2, below which it is taken to be this: what open-unlearning uses."""

REMEMBERED = 1 << 16
"""Texts whose compressed size is kept: every model of a board is asked the same ones."""


def mean_of_lowest(scores: Sequence[float], percent: int) -> float:
    """Mean of the lowest floor(percent/100 n) of n scores, of at least one (Shi et al. 2024, arXiv 2310.16789).

    NaN where a score is: sorting would put it anywhere.
    """
    if math.isnan(sum(scores)):
        return math.nan
    kept = max(1, len(scores) * percent // 100)  # in integers: 0.3 * 10 is 2.9999...
    return math.fsum(sorted(scores)[:kept]) / kept


def loss(sample: Sample) -> float | None:
    """Mean negative log-likelihood of the answer's tokens, in nats (Yeom et al. 2018, arXiv 1709.01604)."""
    logprobs = sample.token_logprobs
    return -math.fsum(logprobs) / len(logprobs) if logprobs else None


def zlib(sample: Sample) -> float | None:
    """Loss over the bytes that zlib makes of the answer's text, in nats per byte (Carlini et al. 2021)."""
    nats = loss(sample)
    return None if nats is None else nats / _compressed(sample.reference)


def min_k(sample: Sample, percent: int) -> float | None:
    """Minus the mean log-probability of the least likely `percent` of the tokens, in nats (Min-K%)."""
    return -mean_of_lowest(sample.token_logprobs, percent) if sample.token_logprobs else None


def min_k_plus_plus(sample: Sample, percent: int) -> float | None:
    """Min-K% of log-probabilities standardised over the vocabulary (Zhang et al. 2025, arXiv 2404.02936).

    A token's score is (log p - mu) / sigma, with mu and sigma^2 the mean and the variance of log p over the model's
    distribution there.
    """
    if not sample.token_logprobs or sample.vocab_means is None or sample.vocab_variances is None:
        return None
    floor, root = SMALLEST_VARIANCE, math.sqrt
    columns = zip(sample.token_logprobs, sample.vocab_means, sample.vocab_variances, strict=True)
    scores = [(logp - mu) / root(square if square > floor else floor) for logp, mu, square in columns]
    return -mean_of_lowest(scores, percent)


def gradient_norm(sample: Sample) -> float | None:
    """Norm of the loss's gradient, as the engine computed it: averaged over the parameters."""
    return dict(sample.scalars).get("gradient_norm")


@lru_cache(REMEMBERED)
def _compressed(text: str) -> int:
    """Bytes of the text compressed at zlib's default level."""
    return len(compression.compress(text.encode()))
