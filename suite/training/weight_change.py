"""How much unlearning changed the weights, and how much of the change survives rounding.

A quantizer undoes changes smaller than half of its grid step. So an update that flips few codes survives quantization
badly under any optimizer, and one that flips many looks robust (arXiv 2410.16454). These statistics stand beside the
scores so that the size of an update is not taken for a merit of its optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suite.attacks.weights.quantization import grid_codes
from suite.models.layers import matrices_of


@dataclass(frozen=True, slots=True)
class Change:
    """Statistics of a weight update. The fields are columns of the board's table `trials`.

    Attributes:
        change_norm: L2 norm of the change, over all weights that could change.
        changed_share: share of them that differ, in their own dtype.
        changed_share_bf16: share of them that differ once both are rounded to bfloat16.
        flipped_share_4bit, flipped_share_8bit: share of the weights of linear layers whose code on a round-to-nearest
            grid with 4 or 8 bits, scaled per output channel, differs (of experts, each expert's outputs); None without
            such weights.
    """

    change_norm: float | None
    changed_share: float
    changed_share_bf16: float
    flipped_share_4bit: float | None
    flipped_share_8bit: float | None

    def for_nonfinite_weights(self) -> Change:
        """The same without the numbers that are meaningless where weights are not finite."""
        return replace(self, change_norm=None, flipped_share_4bit=None, flipped_share_8bit=None)


@torch.no_grad()
def change(before: Mapping[str, Tensor], model: torch.nn.Module) -> Change:
    """Compare a model's parameters with `before` (tensors by parameter name), tensor by tensor."""
    square, differ, differ_bf16, total = 0.0, 0, 0, 0
    flips, codes, matrices = {4: 0, 8: 0}, 0, matrices_of(model)
    for name, parameter in model.named_parameters():
        if name not in before:
            continue
        origin, now = before[name].to(parameter.device), parameter.detach()
        square += float((now.double() - origin.double()).square().sum())
        differ += int((now != origin).sum())
        differ_bf16 += int((now.bfloat16() != origin.bfloat16()).sum())
        total += now.numel()
        if stored := matrices.get(name):
            for old, new in zip(stored.matrices(origin), stored.matrices(now), strict=True):
                for bits in flips:
                    flips[bits] += flipped(old, new, bits)
            codes += now.numel()
    share = {bits: count / codes if codes else None for bits, count in flips.items()}
    return Change(square**0.5, differ / total, differ_bf16 / total, share[4], share[8])


def flipped(before: Tensor, after: Tensor, bits: int, group: int | None = None) -> int:
    """The number of weights in a matrix whose code on the round-to-nearest grid differs from the one before.

    Each matrix uses the scales of its own weights, as a quantizer of the new model would. So a change of a row's
    largest weight may flip codes of weights that did not change.

    Args:
        before, after: (outputs, inputs).
        group: as for `grid_codes`: by default a scale per output channel.
    """
    return int((grid_codes(before, bits, group)[0] != grid_codes(after, bits, group)[0]).sum())
