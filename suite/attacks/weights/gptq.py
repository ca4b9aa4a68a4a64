"""GPTQ: rounding one input after the other, with each error compensated by the weights that are not rounded yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.attacks.weights.calibrated_edit import CalibratedEdit, CalibratedSettings
from suite.attacks.weights.layer_inputs import Inputs
from suite.attacks.weights.quantization import levels_of, round_to_nearest, snap

LAZY = 128
"""Number of columns whose errors are applied to the columns after them in one product (Sec. 3.3, step 2)."""


def gptq(weight: Tensor, gram: Tensor, bits: int, group: int, damp: float) -> Tensor:
    """Weights on the grid of `round_to_nearest` that keep W X close, in fp32 (Algorithm 1).

    A row has the second derivatives H = 2 X X^T. Column j is rounded, and its error over U_jj, times row j of U, is
    subtracted from the columns after it, where H^-1 = U^T U and U is upper triangular. A group's grid is that of its
    weights when its first column is reached.

    Args:
        weight: (outputs, inputs), fp32.
        gram: X X^T, (inputs, inputs). If it is zero or a multiple of the identity, the result is rounding to nearest.
        group: consecutive inputs that share a scale.
        damp: added to H's diagonal, in units of its mean.
    """
    hessian = gram.double()  # it is inverted, and with few calibration texts it is close to singular
    mean = float(hessian.diagonal().mean())
    if mean == 0:
        return round_to_nearest(weight, bits, group)
    hessian = hessian / mean
    hessian.diagonal().add_(damp)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    levels = levels_of(bits)
    columns = weight.T.contiguous().clone()  # (inputs, outputs), so that a column is contiguous in memory
    for first in range(0, len(columns), group):
        last = min(first + group, len(columns))
        largest = columns[first:last].abs().amax(0)
        for start in range(first, last, LAZY):
            stop = min(start + LAZY, last)
            errors = torch.empty_like(columns[start:stop])
            for j in range(start, stop):
                rounded = snap(columns[j], largest, levels)
                torch.sub(columns[j], rounded, out=errors[j - start]).div_(upper[j, j])
                columns[j] = rounded
                columns[j + 1 : stop].addr_(upper[j, j + 1 : stop], errors[j - start], alpha=-1)
            columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return columns.T.contiguous()


class GPTQ(CalibratedEdit["GPTQ.Settings"]):
    """GPTQ on calibration texts: the grid of `rtn`, with compensation of rounding errors. De-quantized.

    The published code by default rounds to 2^bits levels between a group's smallest and largest weight; this is its
    symmetric grid, so that only the compensation differs from `rtn`.
    """

    source = "Frantar et al. 2023, arXiv 2210.17323"
    example: ClassVar[Mapping[str, Any]] = {"bits": 4, "samples": 4}

    class Settings(CalibratedSettings):
        """group: consecutive inputs of a row that share a scale. damp: added to the Hessian, over its mean diagonal."""

        name: Literal["gptq"] = "gptq"
        bits: int = Field(ge=2, le=8)
        group: int = Field(128, ge=2)
        damp: float = Field(0.01, gt=0)

    def edit(self, weight: Tensor, inputs: Inputs) -> Tensor:
        s = self.settings
        assert inputs.gram is not None
        return gptq(weight, inputs.gram, s.bits, s.group, s.damp)
