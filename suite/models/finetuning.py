"""Ordinary fine-tuning, as anchors and attacks that train need it: AdamW on answers, batches of like length."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import mean_nll
from suite.models.schedule import Schedule, step_size


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


def feed(inner: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Sequence[Tensor], lr: float) -> None:
    """One step of a torch optimizer with this gradient and step size."""
    for parameter, part in zip(parameters, gradient, strict=True):
        parameter.grad = part
    for group in inner.param_groups:
        group["lr"] = lr
    inner.step()
    for parameter in parameters:
        parameter.grad = None
