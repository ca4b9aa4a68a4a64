"""Perplexity of running text: every token has the same weight, however the text is cut into items."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.scoring.estimate import Estimate
from tasks.scoring.tables import Table, lacking

LARGEST_LOSS = 700.0
"""Nats per token; e^709 is the largest double."""


def perplexity(tables: Sequence[Table], _: Sequence[Table]) -> Estimate:
    """exp(total negative log-likelihood / total tokens).

    The standard error is that of a ratio estimator, to first order: the sampling units are items, each with its loss
    and its tokens. A mean of the items' own perplexities or losses would give a short item the weight of a long one.
    """
    (table,) = tables
    losses: list[float] = []
    lengths: list[int] = []
    for sample in table:
        if not sample.token_logprobs:
            raise lacking(sample, "perplexity")
        losses.append(-math.fsum(sample.token_logprobs))
        lengths.append(len(sample.token_logprobs))
    n, tokens = len(table), sum(lengths)
    if not n:
        return Estimate.null("no examples")
    if not all(map(math.isfinite, losses)):
        return Estimate.null("a value is not finite", n)
    nats = math.fsum(losses) / tokens
    if nats > LARGEST_LOSS:
        return Estimate.null(f"e^{nats:.0f} is no double", n)
    value = math.exp(nats)
    if n == 1:
        return Estimate(value, None, 1)
    squares = math.fsum((total - nats * length) ** 2 for total, length in zip(losses, lengths, strict=True))
    return Estimate(value, value * math.sqrt(squares * n / (n - 1)) / tokens, n)
