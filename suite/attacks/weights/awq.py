"""AWQ: finer rounding where inputs are large, by scaling weights up before they are rounded and down afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from suite.attacks.weights.calibrated_edit import CalibratedEdit, CalibratedSettings
from suite.attacks.weights.layer_inputs import Inputs
from suite.attacks.weights.quantization import round_to_nearest

EXPONENTS = tuple(i / 20 for i in range(20))
"""Exponents that are tried, as in the published code (Eq. 5 searches [0, 1])."""


def scales(mean: Tensor, exponent: float) -> Tensor:
    """Factor of each input: mean|x|^exponent (Eq. 5).

    The published code also divides all factors by one number. The grid scales with it, so only the last bit would
    change.

    Args:
        mean: mean magnitude of each input, (inputs,).
    """
    return mean.pow(exponent).clamp_(min=1e-4)  # as in the published code: an input may always be zero


def scaled_rounding(weight: Tensor, factors: Tensor, bits: int, group: int) -> Tensor:
    """Q(W s) / s: (outputs, inputs). In deployment the layer before absorbs 1/s; here the weight itself does."""
    return round_to_nearest(weight * factors, bits, group) / factors


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """Squared error of the layer's outputs over all positions: ||(W' - W) X||^2."""
    change = rounded - weight
    return float((change @ gram).mul_(change).sum())


def awq(weight: Tensor, inputs: Inputs, bits: int, group: int) -> Tensor:
    """The scaled rounding whose exponent has the smallest output error (Eq. 4); at exponent 0 it is `rtn`."""
    gram = inputs.gram
    assert gram is not None
    candidates = (scaled_rounding(weight, scales(inputs.mean, exponent), bits, group) for exponent in EXPONENTS)
    return min(candidates, key=lambda rounded: output_error(weight, rounded, gram))


class AWQ(CalibratedEdit["AWQ.Settings"]):
    """AWQ on calibration texts: the grid of `rtn`, finer for inputs of large activations. De-quantized.

    Layers with the same inputs share their scales, as they must if the layer before absorbs these. The error is that of
    the linear layers' own outputs, and there is no search for clipped ranges.
    """

    source = "Lin et al. 2024, arXiv 2306.00978"
    example: ClassVar[Mapping[str, Any]] = {"bits": 4, "samples": 4}

    class Settings(CalibratedSettings):
        """group: consecutive inputs of a row that share a scale of the grid."""

        name: Literal["awq"] = "awq"
        bits: int = Field(ge=2, le=8)
        group: int = Field(128, ge=2)

    def edit(self, weight: Tensor, inputs: Inputs) -> Tensor:
        return awq(weight, inputs, self.settings.bits, self.settings.group)
