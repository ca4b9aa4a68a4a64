"""Sampling of tokens at a temperature, each with its own random number.

The number depends only on the prompt, the draw and the step. So a continuation does not depend on what else is in the
batch, on the order of the prompts, or on whether another probe needs a longer continuation of the same prompt.
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
"""Random bits of a number: the full precision of a double between 1/2 and 1."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How the tokens of one continuation are drawn.

    Attributes:
        temperature: what the logits are divided by, above 0.
        key: determines its random numbers.
    """

    temperature: float
    key: bytes

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], number: int) -> Self:
        """The draw with this number for a prompt. Prompts with the same token ids have the same draws."""
        text = f"{sampling.seed}:{number}:{','.join(map(str, prompt))}"
        return cls(sampling.temperature, hashlib.blake2b(text.encode(), digest_size=16).digest())

    def uniform(self, step: int) -> float:
        """The random number of a step, in [0, 1)."""
        bits = hashlib.blake2b(self.key + step.to_bytes(8, "big"), digest_size=8).digest()
        return (int.from_bytes(bits, "big") >> 64 - BITS) / 2**BITS


def drawn(logits: Tensor, temperatures: Sequence[float], uniforms: Sequence[float]) -> Tensor:
    """The tokens at which the cumulative probabilities of softmax(logits / temperature) first exceed the numbers.

    Computed in float64: in fp32 the error of a sum over a large vocabulary exceeds the probability of many tokens.

    Args:
        logits: (rows, vocabulary).
        temperatures, uniforms: one per row; the numbers are in [0, 1).

    Returns:
        (rows,) token ids.
    """
    settings = torch.tensor([temperatures, uniforms], dtype=torch.float64, device=logits.device)[..., None]
    weights = logits.to(torch.float64, copy=True)  # everything below is in place, because this is large
    weights.sub_(weights.amax(-1, keepdim=True)).div_(settings[0]).exp_()
    cumulative = torch.cumsum(weights, -1, out=weights)
    # The number is scaled by the computed sum. It may be rounded up to the full sum, beyond which there is no token.
    tokens = torch.searchsorted(cumulative, settings[1] * cumulative[:, -1:], right=True)
    return tokens[:, 0].clamp_(max=logits.shape[-1] - 1)
