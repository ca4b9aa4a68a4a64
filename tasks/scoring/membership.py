"""Membership scores of a text: higher means less likely that the model was trained on it.

All of them use every token of the answer, including the last. `tasks.scoring.separation` turns the scores of two
sets of texts into one number.
"""

from __future__ import annotations

import math
import zlib as compression
from collections.abc import Sequence
from functools import lru_cache

from tasks.task import Sample

SMALLEST_VARIANCE = 1e-6
"""Lower bound of the variance of log p over the vocabulary, nats^2, as in open-unlearning."""

REMEMBERED = 1 << 16
"""Size of the cache of compressed sizes: every model of a board is measured on the same texts."""


def mean_of_lowest(scores: Sequence[float], percent: int) -> float:
    """Mean of the lowest floor(percent/100 n) of n scores, of at least one (Shi et al. 2024, arXiv 2310.16789).

    NaN if a score is NaN: sorting would put it anywhere.
    """
    if math.isnan(sum(scores)):
        return math.nan
    count = max(1, len(scores) * percent // 100)  # in integers: 0.3 * 10 is 2.9999...
    return math.fsum(sorted(scores)[:count]) / count


def loss(sample: Sample) -> float | None:
    """Mean negative log-likelihood of the answer's tokens, in nats (Yeom et al. 2018, arXiv 1709.01604)."""
    logprobs = sample.token_logprobs
    return -math.fsum(logprobs) / len(logprobs) if logprobs else None


def zlib(sample: Sample) -> float | None:
    """Loss over the zlib-compressed size of the answer's text, in nats per byte (Carlini et al. 2021)."""
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
    """Norm of the loss's gradient, averaged over the parameters, as the engine computed it."""
    return dict(sample.scalars).get("gradient_norm")


@lru_cache(REMEMBERED)
def _compressed(text: str) -> int:
    """Bytes of the text compressed at zlib's default level."""
    return len(compression.compress(text.encode()))
