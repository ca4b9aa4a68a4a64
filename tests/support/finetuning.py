"""Fine-tuning by hand in plain torch, and helpers that run attacks that train."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from suite.attacks import AttackContext, Subject, attack
from suite.models.encoding import Encoded

RELEARN = {"name": "relearn", "samples": 4, "lr": 1e-3}


def run(settings_: dict, subject: Subject, context: AttackContext) -> dict[int, dict[str, torch.Tensor]]:
    return {point: s.checkpoint.state() for point, s in attack(settings_).apply(subject, context)}


def drawn_texts(context: AttackContext, count: int, rng: random.Random) -> list[Encoded]:
    return [context.encoder.example(e) for e in rng.sample(context.forget, count)]


def mean_loss(model: torch.nn.Module, texts: Sequence[Encoded]) -> torch.Tensor:
    """Cross-entropy per answer token, one text at a time."""
    total, count = torch.zeros(()), 0
    for text in texts:
        logits = model(input_ids=torch.tensor([text.ids])).logits[0, text.start - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(text.answer), reduction="sum")
        count += len(text.answer)
    return total / count


def by_hand(model, texts, steps: int, lr: float, *, sign: float = 1.0, weight_decay: float = 0.0, schedule=None):
    """Full batches, torch's AdamW and clipping; the model's trainable parameters move."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(steps):
        optimizer.zero_grad()
        (sign * mean_loss(model, texts)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return model


def assert_same_weights(one, other) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def assert_close(got, expected) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-3, atol=2e-5)
