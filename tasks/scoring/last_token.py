"""Metrics as open-unlearning computes them (arXiv 2506.12618): without the last labelled token of an answer.

Its code takes that token for an end-of-text mark. After a question's answer it is one; the last token of running text
is content. Probability, loss and zlib do not leave it out, there or here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tasks.scoring.probability import extraction_strength
from tasks.scoring.tables import PerSample
from tasks.task import Sample

T = TypeVar("T")


def without_last(compute: PerSample) -> PerSample:
    """The metric of all tokens but the last one; None where none is left."""

    def metric(sample: Sample) -> float | None:
        return compute(
            replace(
                sample,
                token_logprobs=_cut(sample.token_logprobs),
                token_correct=_cut(sample.token_correct),
                vocab_means=_cut(sample.vocab_means),
                vocab_variances=_cut(sample.vocab_variances),
            )
        )

    return metric


def extracted_at_least_one(sample: Sample) -> float | None:
    """Extraction strength as in its code, whose search for a prefix ends before the last token: 1/n instead of 0."""
    correct = sample.token_correct
    return (extraction_strength(correct) or 1 / len(correct)) if correct else None


def gradient_norm(sample: Sample) -> float | None:
    """Norm of the gradient of the loss of all tokens but the last one, averaged over the parameters.

    From a backward pass of its own. Its code leaves dropout on; the models that it knows have none.
    """
    return dict(sample.scalars).get("gradient_norm_but_last")


def _cut(column: tuple[T, ...] | None) -> tuple[T, ...] | None:
    return None if column is None else column[:-1]
