"""A language model of two thousand weights and the batches of a run of it: everything that an objective may ask for."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from suite.models.encoding import Encoded, Tokens
from suite.oracle.base import Tensors
from suite.oracle.batch import Batch

VOCABULARY = 23


def llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The model, of two blocks; its linear layers have the names that Llama's have."""
    return seeded_llama(
        seed, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    ).to(dtype)  # fmt: skip


def seeded_llama(seed: int, **sizes: Any) -> Any:
    """A model with the weights of a seed; torch's random numbers go on from where making it leaves them."""
    model, drawn = _built(seed, **sizes)
    torch.set_rng_state(drawn)
    return deepcopy(model)


@cache
def _built(seed: int, **sizes: Any) -> tuple[torch.nn.Module, Tensor]:
    """A copy takes half the time, and a thousand tests want one. With it, where torch's random numbers are then."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.3)
    return LlamaForCausalLM(config).eval(), torch.get_rng_state()


def texts(lengths: list[tuple[int, int]], draw: torch.Generator, vocabulary: int = VOCABULARY) -> Tokens:
    """Drawn token ids.

    Args:
        lengths: of each text the number of its tokens, and the place at which its answer begins.
    """
    return Tokens.collate(
        [Encoded(tuple(torch.randint(0, vocabulary, (n,), generator=draw).tolist()), start) for n, start in lengths]
    )


def batch(seed: int = 0) -> Batch:
    """Forget texts with what the model before unlearning says of them, and retain texts."""
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        texts([(9, 4), (6, 3), (7, 6)], draw),
        texts([(8, 5), (10, 2)], draw),
        torch.tensor([-7.0, -9.0, -4.0], dtype=torch.float64),
    )


def full_batch(seed: int = 0) -> Batch:
    """A batch with everything that any objective asks for."""
    draw, plain = torch.Generator().manual_seed(100 + seed), batch(seed)
    return Batch(
        plain.forget,
        plain.retain,
        plain.forget_reference,
        forget_refusals=texts([(7, 4), (9, 3), (8, 6)], draw),
        forget_refusals_reference=torch.tensor([-6.0, -12.0, -5.0], dtype=torch.float64),
        retain_refusals=texts([(7, 5), (9, 2)], draw),
    )


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies that later steps do not change."""
    return [t.detach().clone() for t in tensors]


def same_bits(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other, strict=True))
