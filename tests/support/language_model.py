"""An oracle of the small language model, and what tests of it need."""

from __future__ import annotations

import torch

from suite.objectives import OBJECTIVES, Reference
from suite.oracle.loss import LossOracle
from suite.testing.language_model import batch, llama, same_bits, seeded_llama

__all__ = ["batch", "direction", "llama", "oracle", "same_bits", "seeded_llama", "sum_of_parts", "weights"]


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


def sum_of_parts(loss_oracle: LossOracle) -> torch.Tensor:
    return loss_oracle.objective.forget(loss_oracle.model, loss_oracle.batch) + loss_oracle.objective.retain(
        loss_oracle.model, loss_oracle.batch
    )
