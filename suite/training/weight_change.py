"""What unlearning did to the weights, and how much of it a rounding would take back.

A quantizer undoes changes smaller than half of its grid step, so an update that flips few codes survives quantization
badly whoever made it, and one that flips many looks robust (arXiv 2410.16454). These numbers stand beside the scores so
that the size of an update is not taken for a virtue of its optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from suite.attacks.weights.quantization import grid_codes
from suite.models.layers import is_linear
from suite.oracle import noise
from suite.oracle.base import Displacement, Oracle, Part
from suite.oracle.directions import Lazily

PROBE_RADIUS = 1e-3
"""Root-mean-square displacement of the probe of `drift`: MeZO's (arXiv 2305.17333)."""

_PROBE = 0x0D21F7
"""Keys the probe's noise apart from everything else that a trial draws from its seed."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did to the weights.

    Attributes:
        norm: L2 norm of the change, over all weights that could change.
        share: share of them that differ, in their own dtype.
        share_bf16: share of them that differ once both are rounded to bfloat16.
        flipped_4bit, flipped_8bit: share of the weights of linear layers whose code on the round-to-nearest grid of so
            many bits, per output channel, is another one; None without such weights.
    """

    norm: float
    share: float
    share_bf16: float
    flipped_4bit: float | None
    flipped_8bit: float | None


@torch.no_grad()
def change(before: Mapping[str, Tensor], model: torch.nn.Module) -> Change:
    """How far a model's parameters are from `before` (tensors by parameter name), tensor by tensor."""
    square, differ, differ_bf16, total = 0.0, 0, 0, 0
    flips, codes = {4: 0, 8: 0}, 0
    for name, parameter in model.named_parameters():
        if name not in before:
            continue
        origin, now = before[name].to(parameter.device), parameter.detach()
        square += float((now.double() - origin.double()).square().sum())
        differ += int((now != origin).sum())
        differ_bf16 += int((now.bfloat16() != origin.bfloat16()).sum())
        total += now.numel()
        if is_linear(name, now):
            for bits in flips:
                flips[bits] += flipped(origin, now, bits)
            codes += now.numel()
    share = {bits: count / codes if codes else None for bits, count in flips.items()}
    return Change(square**0.5, differ / total, differ_bf16 / total, share[4], share[8])


def flipped(before: Tensor, after: Tensor, bits: int, group: int | None = None) -> int:
    """How many weights of a matrix have another code on the round-to-nearest grid than before.

    Each matrix has the scales of its own weights, as whoever quantizes the new model would compute them, so a change of
    a row's largest weight may flip codes of weights that did not move.

    Args:
        before, after: (outputs, inputs).
        group: as for `grid_codes`: by default a scale per output channel.
    """
    return int((grid_codes(before, bits, group)[0] != grid_codes(after, bits, group)[0]).sum())


@torch.no_grad()
def drift(oracle: Oracle, seed: int) -> float:
    """Share of the weights that differ, bit for bit, after the oracle was asked for a value in the neighbourhood.

    It is 0 where the weights are given back. Adding and subtracting a displacement in place instead leaves about half
    of them changed by rounding, a random walk that nobody asked for.

    Raises:
        Diverged: the value is not finite.
    """
    before = [parameter.detach().to("cpu", copy=True) for parameter in oracle.parameters]

    def direction(index: int) -> Tensor:
        return noise.gaussian([oracle.parameters[index]], (seed, _PROBE, index))[0]

    oracle.values(Part.TOTAL, [Displacement.along(Lazily(len(before), direction), PROBE_RADIUS)])
    changed = 0
    for old, now in zip(before, oracle.parameters, strict=True):
        bits = [tensor.detach().cpu().reshape(-1, 1).view(torch.uint8) for tensor in (old, now)]
        changed += int((bits[0] != bits[1]).any(1).sum())
    return changed / sum(old.numel() for old in before)
