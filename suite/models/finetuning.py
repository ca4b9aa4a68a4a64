"""Ordinary fine-tuning, for anchors and for attacks that train: AdamW on answers, in batches of similar length."""

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
    """Train `model` in place; yield the number of steps made at each step in `report_at` and after the last step.

    Args:
        warmup: steps over which the step size rises to `lr`.
        schedule: of the step size.
        clip: largest global gradient norm.
        ascend: maximise the loss instead.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    for step, batch in zip(range(steps), batches(texts, batch_size, seed), strict=False):
        loss = mean_nll(model, Tokens.collate([texts[i] for i in batch], device))
        gradient = torch.autograd.grad(loss, parameters)
        if ascend:
            torch._foreach_neg_(list(gradient))
        norm = float(torch.nn.utils.get_total_norm(gradient))
        if norm > clip:
            torch._foreach_mul_(list(gradient), clip / norm)
        feed(optimizer, parameters, gradient, step_size(lr, step, steps, warmup, schedule))
        if step + 1 in report_at or step + 1 == steps:
            yield step + 1


def batches(texts: Sequence[Encoded], size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices without end, epoch by epoch, in random order. Texts in a batch have similar lengths, to save
    padding.

    Ties in length are broken anew in each epoch, so that a text is not always batched with the same others.
    """
    rng = random.Random(seed)
    while True:
        indices = list(range(len(texts)))
        rng.shuffle(indices)
        indices.sort(key=lambda i: len(texts[i].ids))
        groups = [indices[i : i + size] for i in range(0, len(indices), size)]
        rng.shuffle(groups)
        yield from groups


def feed(inner: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Sequence[Tensor], lr: float) -> None:
    """Make one step of a torch optimizer with this gradient and step size."""
    for parameter, part in zip(parameters, gradient, strict=True):
        parameter.grad = part
    for group in inner.param_groups:
        group["lr"] = lr
    inner.step()
    for parameter in parameters:
        parameter.grad = None
