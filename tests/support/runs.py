"""Runs of any objective, smoothing, optimizer and adapter on a language model of a thousand weights."""

from __future__ import annotations

from typing import Any

import torch

from suite.adapters import ADAPTERS
from suite.config.registry import Registry
from suite.objectives import OBJECTIVES, Reference
from suite.optimizers import OPTIMIZERS, Run
from suite.oracle.base import Metered
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle
from suite.smoothing import SMOOTHINGS
from suite.spec.trial import trial
from suite.testing.language_model import seeded_llama, texts
from suite.testing.runs import Trained
from tests.support.small import SMALL

STEPS = 3


def llama(seed: int) -> torch.nn.Module:
    return seeded_llama(
        seed, vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip


def batch(number: int) -> Batch:
    draw = torch.Generator().manual_seed(number)

    known = torch.tensor([-7.0, -9.0], dtype=torch.float64)
    return Batch(
        texts([(7, 3), (5, 2)], draw, 17), texts([(6, 4), (8, 3)], draw, 17), known,
        forget_refusals=texts([(6, 3), (5, 2)], draw, 17), forget_refusals_reference=known - 1,
        retain_refusals=texts([(6, 4), (7, 3)], draw, 17),
    )  # fmt: skip


def section(registry: Registry[Any], name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **registry[name].example, **more}


def made(objective: str, smoothing: str, optimizer: str, adapter: str = "full") -> Trained:
    """The run that a trial of these names makes.

    Raises:
        SpecError: such a trial is refused.
    """
    checked = trial(
        {
            **SMALL,
            "objective": section(OBJECTIVES, objective),
            "smoothing": section(SMOOTHINGS, smoothing),
            "optimizer": section(OPTIMIZERS, optimizer, lr=1e-5),  # this model is sharply curved
            "adapter": section(ADAPTERS, adapter),
            "steps": 2 * STEPS,
        }
    )
    model = llama(0)
    ADAPTERS[adapter](checked.adapter, model, 0)
    kind = OBJECTIVES[objective]
    oracle = LossOracle(model, kind(checked.objective, Reference(llama(1).requires_grad_(False))), seed=3)
    run = Run(checked.steps, seed=5)
    smoothed = SMOOTHINGS[smoothing](oracle, checked.smoothing, run)
    steps = OPTIMIZERS[optimizer](checked.optimizer, oracle.parameters, run)
    return Trained(oracle, smoothed, Metered(smoothed), steps, batches=batch)
