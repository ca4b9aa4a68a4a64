"""Tokens drawn at a temperature, each with a random number of its own.

The number follows from the prompt, the draw and the step alone. So an answer does not depend on what else is in the
batch, in which order prompts are read, or whether the same prompt is asked by another probe for longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tasks.task import Sampling

BITS = 53
"""Of a random number: all that a double between 1/2 and 1 has."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How the tokens of one continuation are drawn.

    Attributes:
        temperature: what the logits are divided by, above 0.
        key: of its random numbers.
    """

    temperature: float
    key: bytes

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], number: int) -> Self:
        """One of the draws after a prompt. Prompts of the same ids have the same draws."""
        text = f"{sampling.seed}:{number}:{','.join(map(str, prompt))}"
        return cls(sampling.temperature, hashlib.blake2b(text.encode(), digest_size=16).digest())

    def uniform(self, step: int) -> float:
        """The random number of a step, in [0, 1)."""
        bits = hashlib.blake2b(self.key + step.to_bytes(8, "big"), digest_size=8).digest()
        return (int.from_bytes(bits, "big") >> 64 - BITS) / 2**BITS


def drawn(logits: Tensor, temperatures: Sequence[float], uniforms: Sequence[float]) -> Tensor:
    """The tokens at which the cumulated probabilities softmax(logits / temperature) first exceed the numbers.

    Computed in float64: in fp32 the sum of a large vocabulary is off by more than many of its tokens are likely.

    Args:
        logits: (rows, vocabulary).
        temperatures, uniforms: one per row; the numbers are in [0, 1).

    Returns:
        (rows,) token ids.
    """
    settings = torch.tensor([temperatures, uniforms], dtype=torch.float64, device=logits.device)[..., None]
    weights = logits.to(torch.float64, copy=True)  # in place from here on: it is large
    weights.sub_(weights.amax(-1, keepdim=True)).div_(settings[0]).exp_()
    cumulated = torch.cumsum(weights, -1, out=weights)
    # A share of what the sum came out as. It could still be rounded up to all of it, and then no token lies beyond.
    tokens = torch.searchsorted(cumulated, settings[1] * cumulated[:, -1:], right=True)
    return tokens[:, 0].clamp_(max=logits.shape[-1] - 1)
