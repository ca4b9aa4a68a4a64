"""Metrics of teacher-forced answers: probability, exact memorization, extraction strength."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.task import Sample


def answer_probability(logprobs: Sequence[float]) -> float:
    """Length-normalised probability of an answer, exp(mean log p): TOFU's `Prob` (arXiv 2401.06121, Sec. 2.2.2)."""
    return math.exp(math.fsum(logprobs) / len(logprobs))


def exact_memorization(predicted: Sequence[bool]) -> float:
    """Share of the answer's tokens that the teacher-forced argmax gets right (Tirumala et al. 2022)."""
    return sum(predicted) / len(predicted)


def extraction_strength(predicted: Sequence[bool]) -> float:
    """Share of the answer that the model completes by itself: 1 - k/n (Carlini et al. 2021).

    k is the length of the shortest prefix after which every teacher-forced prediction is right: 1.0 when all are, 0.0
    when the last one is wrong (open-unlearning gives 1/n then).
    """
    completed = 0
    for right in reversed(predicted):
        if not right:
            break
        completed += 1
    return completed / len(predicted)


def probability(sample: Sample) -> float | None:
    return answer_probability(sample.token_logprobs) if sample.token_logprobs else None


def memorized(sample: Sample) -> float | None:
    return exact_memorization(sample.token_correct) if sample.token_correct else None


def extracted(sample: Sample) -> float | None:
    return extraction_strength(sample.token_correct) if sample.token_correct else None
