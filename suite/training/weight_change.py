"""What unlearning did to the weights, and how much of it a rounding would take back.

A quantizer undoes changes smaller than half of its grid step, so an update that flips few codes survives quantization
badly whoever made it, and one that flips many looks robust (arXiv 2410.16454). These numbers stand beside the scores so
that the size of an update is not taken for a virtue of its optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suite.attacks.weights.quantization import grid_codes
from suite.models.layers import is_linear


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did to the weights. The fields are columns of the board's table `trials`.

    Attributes:
        change_norm: L2 norm of the change, over all weights that could change.
        changed_share: share of them that differ, in their own dtype.
        changed_share_bf16: share of them that differ once both are rounded to bfloat16.
        flipped_share_4bit, flipped_share_8bit: share of the weights of linear layers whose code on the round-to-nearest
            grid of so many bits, per output channel, is another one; None without such weights.
    """

    change_norm: float | None
    changed_share: float
    changed_share_bf16: float
    flipped_share_4bit: float | None
    flipped_share_8bit: float | None

    def of_unsound_weights(self) -> Change:
        """The same without the numbers that make no sense of weights which are not finite."""
        return replace(self, change_norm=None, flipped_share_4bit=None, flipped_share_8bit=None)


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
