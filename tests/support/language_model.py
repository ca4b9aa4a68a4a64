"""A language model of two thousand weights, its texts, and an oracle of it."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch

from suite.models.encoding import Encoded, Tokens
from suite.objectives import OBJECTIVES, Reference
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle


def llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return seeded_llama(
        seed, vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    ).to(dtype)  # fmt: skip


def seeded_llama(seed: int, **sizes: int) -> torch.nn.Module:
    """A model with the weights of a seed; torch's random numbers go on from where making it leaves them."""
    model, drawn = _built(seed, **sizes)
    torch.set_rng_state(drawn)
    return deepcopy(model)


@cache
def _built(seed: int, **sizes: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A copy takes half the time, and a thousand tests want one. With it, where torch's random numbers are then."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.3)
    return LlamaForCausalLM(config).eval(), torch.get_rng_state()


def batch(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)

    def texts(lengths: list[tuple[int, int]]) -> Tokens:
        return Tokens.collate(
            [Encoded(tuple(torch.randint(0, 23, (n,), generator=draw).tolist()), start) for n, start in lengths]
        )

    reference = torch.tensor([-7.0, -9.0, -4.0], dtype=torch.float64)
    return Batch(texts([(9, 4), (6, 3), (7, 6)]), texts([(8, 5), (10, 2)]), reference)


def oracle(name: str = "npo", dtype: torch.dtype = torch.float32, **changes: object) -> LossOracle:
    model = llama(dtype=dtype)
    kind = OBJECTIVES[name]
    made = LossOracle(model, kind(kind.Settings(**changes), Reference(llama(1, dtype).requires_grad_(False))))
    made.batch = batch()
    return made


def direction(like: LossOracle, seed: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=draw) for p in like.parameters]


def weights(of: LossOracle) -> list[torch.Tensor]:
    return [p.detach().clone() for p in of.parameters]


def same_bits(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(one, other, strict=True))


def sum_of_parts(loss_oracle: LossOracle) -> torch.Tensor:
    return loss_oracle.objective.forget(loss_oracle.model, loss_oracle.batch) + loss_oracle.objective.retain(
        loss_oracle.model, loss_oracle.batch
    )
