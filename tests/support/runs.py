"""Runs of any objective, smoothing, optimizer and adapter on a language model of a thousand weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from suite.adapters import ADAPTERS
from suite.models.encoding import Encoded, Tokens
from suite.objectives import OBJECTIVES, Reference
from suite.optimizers import OPTIMIZERS, Optimizer, Run
from suite.oracle.base import Metered
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle
from suite.smoothing import SMOOTHINGS, Smoothing
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from tests.support.language_model import seeded_llama
from tests.support.small import SMALL

STEPS = 3
NEEDED: dict[str, dict[str, Any]] = {
    # Settings without which an entry does not exist, would do nothing in so few steps, or diverges on weights as
    # sharply curved as these.
    "universal_sam": {"weight": 1e-7},
    "wa": {"start": 1, "every": 1},
    "rmu": {"layer": 0},
    "pdu": {"retain_weight": 1.0},
}


@dataclass
class Trained:
    """A run on a language model of a thousand weights."""

    oracle: LossOracle
    smoothed: Smoothing
    metered: Metered
    optimizer: Optimizer

    def steps(self, numbers: range) -> Trained:
        for number in numbers:
            self.oracle.batch = batch(number)
            self.optimizer.step(self.metered)
            self.metered.stepped()
        return self

    def weights(self) -> list[torch.Tensor]:
        ends = self.smoothed.final_weights()
        return [w.detach().clone() for w in (self.oracle.parameters if ends is None else ends)]

    def state(self) -> dict[str, Any]:
        parts = {"oracle": self.oracle, "smoothing": self.smoothed, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()} | {
            "weights": [p.detach().clone() for p in self.oracle.parameters]
        }

    def load(self, saved: dict[str, Any]) -> Trained:
        with torch.no_grad():
            torch._foreach_copy_(self.oracle.parameters, saved["weights"])
        for name, part in {"oracle": self.oracle, "smoothing": self.smoothed, "optimizer": self.optimizer}.items():
            part.load_state_dict(saved[name])
        return self


def llama(seed: int) -> torch.nn.Module:
    return seeded_llama(
        seed, vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip


def batch(number: int) -> Batch:
    draw = torch.Generator().manual_seed(number)

    def texts(*lengths: tuple[int, int]) -> Tokens:
        return Tokens.collate(
            [Encoded(tuple(torch.randint(0, 17, (n,), generator=draw).tolist()), start) for n, start in lengths]
        )

    known = torch.tensor([-7.0, -9.0], dtype=torch.float64)
    return Batch(
        texts((7, 3), (5, 2)), texts((6, 4), (8, 3)), known,
        forget_refusals=texts((6, 3), (5, 2)), forget_refusals_reference=known - 1,
        retain_refusals=texts((6, 4), (7, 3)),
    )  # fmt: skip


def section(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name} | NEEDED.get(name, {}) | more


def made(
    objective: str, smoothing: str, optimizer: str, adapter: str = "full", more: dict[str, Any] | None = None
) -> Trained:
    """The run that a trial of these names makes.

    Raises:
        SpecError: such a trial is refused.
    """
    data = merged(
        SMALL,
        {
            "objective": section(objective),
            "smoothing": section(smoothing),
            "optimizer": {"name": optimizer, "lr": 1e-5},
            "adapter": {"name": adapter},
            "steps": 2 * STEPS,
        },
    )
    data["objective"], data["optimizer"] = section(objective), section(optimizer, lr=1e-5)
    checked = trial(merged(data, more or {}))
    model = llama(0)
    ADAPTERS[adapter](checked.adapter, model, 0)
    kind = OBJECTIVES[objective]
    oracle = LossOracle(model, kind(checked.objective, Reference(llama(1).requires_grad_(False))), seed=3)
    run = Run(checked.steps, seed=5)
    smoothed = SMOOTHINGS[smoothing](oracle, checked.smoothing, run)
    return Trained(
        oracle, smoothed, Metered(smoothed), OPTIMIZERS[optimizer](checked.optimizer, oracle.parameters, run)
    )
