"""Compressed optimizers: a first-order direction m of which only Q(m; b) reaches the weights.

Q stands between the descent direction and the weights (arXiv 2510.00761, Sec. 4): sign-SGD takes the sign of the
gradient, sign-Adam the sign of Adam's direction. With b = 1, Q is the sign; a coordinate whose direction is exactly
zero (an embedding of a token that is in no batch) does not move. Weight decay is part of the direction, so Q applies to
it too.

Compressing the gradient before the optimizer is another method: Adam's direction from signs has 32 bits again. Such
optimizers are here as controls, of grade first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.first_order import (
    SGD,
    Adam,
    AdamSettings,
    SGDSettings,
    TorchOptimizer,
    TorchSettings,
    renamed,
    zeros,
)
from suite.optimizers.quantization import Scale, quantize, scaled_sign
from suite.oracle.base import Grade, Oracle


class BitsSettings(TorchSettings):
    """bits: bits per coordinate. scale: which coordinates share a scale."""

    bits: int = Field(4, ge=1, le=8)
    scale: Scale = "tensor"


class ErrorFeedbackSettings(BitsSettings):
    """error_feedback: whether the compression error of a step is added to the next step."""

    error_feedback: bool = False

    def as_sign(self, kind: type[OptimizerSettings]) -> OptimizerSettings:
        """The settings of the sign optimizer `kind` for one bit without feedback, which is the same method."""
        return self if self.bits > 1 or self.error_feedback else renamed(self, kind)


T = TypeVar("T", bound=TorchSettings)


class Compressed(Optimizer[T]):
    """Q of another optimizer's direction."""

    grade = Grade.COMPRESSED
    queries_per_step = "1 gradient"
    state = (*Optimizer.state, "inner")
    uncompressed: ClassVar[type[TorchOptimizer[Any]]]
    bits: int = 1
    scale: Scale = "tensor"

    def __init__(self, settings: T, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.inner = self.uncompressed(settings, parameters, run)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        direction = self.inner.direction(oracle)
        oracle.compressed(self.bits)
        return [quantize(part, self.bits, self.scale) for part in direction]


class SignSGD(Compressed["SignSGD.Settings"]):
    """sign-SGD: the sign of the gradient (Bernstein et al. 2018), or of its running mean with momentum (Signum)."""

    source = "arXiv 1802.04434"
    uncompressed = SGD

    class Settings(SGDSettings):
        name: Literal["sign_sgd"] = "sign_sgd"


class SignAdam(Compressed["SignAdam.Settings"]):
    """sign-Adam: the sign of Adam's direction (arXiv 2510.00761, Sec. 4); step by step `sign_sgd` with momentum 0.9.

    A sign is that of Adam's first moment alone: the second moment, and so the second beta, cannot change it.
    """

    source = "arXiv 2510.00761"
    uncompressed = Adam

    class Settings(AdamSettings):
        name: Literal["sign_adam"] = "sign_adam"


F = TypeVar("F", bound=ErrorFeedbackSettings)


class Quantized(Compressed[F]):
    """Q(m; b) for any number of bits, with or without error feedback (Karimireddy et al. 2019, arXiv 1901.09847).

    With feedback, the compression error of a step is added to the next one (Alg. 1),
        p = lr m + e;  x <- x - C(p);  e <- p - C(p),
    where C is Q, or mean|p| sign(p) for one bit. The error e is in units of the weights, not of the direction, because
    the step size may change from one step to the next.
    """

    state = (*Compressed.state, "error")

    def __init__(self, settings: F, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.bits, self.scale = settings.bits, settings.scale
        self.error = zeros(parameters) if settings.error_feedback else []

    def move(self, oracle: Oracle) -> None:
        if self.error:
            self.apply(self._with_feedback(oracle), 1.0)
        else:
            super().move(oracle)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        """The compressed direction. With error feedback it depends on the step size, by which the error is divided."""
        return torch._foreach_div(self._with_feedback(oracle), self.lr) if self.error else super().direction(oracle)

    def _with_feedback(self, oracle: Oracle) -> list[Tensor]:
        """C(lr m + e), in units of the weights."""
        torch._foreach_add_(self.error, list(self.inner.direction(oracle)), alpha=self.lr)
        oracle.compressed(self.bits)
        if self.bits == 1:
            step = [scaled_sign(p, self.scale) for p in self.error]
        else:
            step = [quantize(p, self.bits, self.scale) for p in self.error]
        torch._foreach_sub_(self.error, step)
        return step


class CompressedSGD(Quantized["CompressedSGD.Settings"]):
    """The direction of SGD (momentum and decay included) in b bits per coordinate."""

    source = "arXiv 2510.00761"
    uncompressed = SGD

    class Settings(SGDSettings, ErrorFeedbackSettings):
        name: Literal["compressed_sgd"] = "compressed_sgd"

        def plainest(self) -> OptimizerSettings:
            return self.as_sign(SignSGD.Settings)


class CompressedAdam(Quantized["CompressedAdam.Settings"]):
    """The direction of Adam (decay included) in b bits per coordinate."""

    source = "arXiv 2510.00761"
    uncompressed = Adam

    class Settings(AdamSettings, ErrorFeedbackSettings):
        name: Literal["compressed_adam"] = "compressed_adam"

        def plainest(self) -> OptimizerSettings:
            return self.as_sign(SignAdam.Settings)


B = TypeVar("B", bound=BitsSettings)


class OnQuantizedGradient(TorchOptimizer[B]):
    """A torch optimizer that receives Q(g; b). Its direction has 32 bits again, so its grade is first."""

    source = "control"
    control = True

    def gradient(self, oracle: Oracle) -> Sequence[Tensor]:
        return [quantize(part, self.settings.bits, self.settings.scale) for part in oracle.gradient()]


class SGDOnQuantizedGradient(OnQuantizedGradient["SGDOnQuantizedGradient.Settings"], SGD):
    """SGD on a gradient of b bits per coordinate: momentum averages compressed gradients."""

    class Settings(SGDSettings, BitsSettings):
        name: Literal["sgd_on_quantized_gradient"] = "sgd_on_quantized_gradient"


class AdamOnQuantizedGradient(OnQuantizedGradient["AdamOnQuantizedGradient.Settings"], Adam):
    """Adam on a gradient of b bits per coordinate: both moments average compressed gradients."""

    class Settings(AdamSettings, BitsSettings):
        name: Literal["adam_on_quantized_gradient"] = "adam_on_quantized_gradient"
