"""Ordinary fine-tuning, as anchors and attacks that train need it: AdamW on answers, batches of like length."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch

from suite.likelihood import mean_nll
from suite.optimizers.first_order import feed
from suite.text import Encoded, Tokens

Schedule = Literal["constant", "linear", "cosine"]
"""How the step size falls towards the last step."""


def finetune(
    model: torch.nn.Module,
    texts: Sequence[Encoded],
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    warmup: int = 0,
    schedule: Schedule = "constant",
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    clip: float = 1.0,
    ascend: bool = False,
    report_at: Collection[int] = (),
) -> Iterator[int]:
    """Train `model` in place and yield the number of steps made, at each step in `report_at` and after the last.

    Args:
        warmup: steps over which the step size rises to `lr`.
        schedule: how it then falls.
        clip: largest global gradient norm.
        ascend: whether the loss is to rise instead.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    for step, batch in zip(range(steps), batches(texts, batch_size, seed), strict=False):
        loss = mean_nll(model, Tokens.collate([texts[i] for i in batch], device))
        gradient = torch.autograd.grad(loss, parameters)
        if ascend:
            torch._foreach_neg_(list(gradient))
        length = float(torch.nn.utils.get_total_norm(gradient))
        if length > clip:
            torch._foreach_mul_(list(gradient), clip / length)
        feed(optimizer, parameters, gradient, step_size(lr, step, steps, warmup, schedule))
        if step + 1 in report_at or step + 1 == steps:
            yield step + 1


def step_size(lr: float, step: int, steps: int, warmup: int = 0, schedule: Schedule = "constant") -> float:
    """Step size at a step, counted from 0, of a run of so many steps.

    It rises over `warmup` steps, from lr / (warmup + 1), and falls from the first step on: to lr / steps at the last
    one where `schedule` is linear, along half a cosine where it is cosine.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    match schedule:
        case "constant":
            fall = 1.0
        case "linear":
            fall = 1 - step / steps
        case "cosine":
            fall = (1 + math.cos(math.pi * step / steps)) / 2
    return lr * rise * fall


def batches(texts: Sequence[Encoded], size: int, seed: int) -> Iterator[list[int]]:
    """Indices, epoch after epoch without end. Batches hold texts of like length, so little is padded, in random order.

    Ties in length are broken anew in each epoch, so a text does not always meet the same neighbours.
    """
    draw = random.Random(seed)
    while True:
        order = list(range(len(texts)))
        draw.shuffle(order)
        order.sort(key=lambda i: len(texts[i].ids))
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        draw.shuffle(groups)
        yield from groups
