"""First-order optimizers: one gradient per step, applied by torch.optim (with its fused kernels where they exist)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.config.numbers import Decay
from suite.models.finetuning import feed
from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.oracle.base import Grade, Oracle

S = TypeVar("S", bound=OptimizerSettings)


def fp32(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors in fp32, detached; those that are fp32 already are not copied."""
    return [t.detach().float() for t in tensors]


def zeros(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Initial averages, in fp32 whatever the weights' dtype: in bf16 an average of decay 0.999 would not change."""
    return [torch.zeros_like(p, dtype=torch.float32) for p in parameters]


def renamed(settings: OptimizerSettings, kind: type[S]) -> S:
    """The settings of another optimizer with the same values, without the fields that it does not have."""
    return kind(**{key: value for key, value in settings if key in kind.model_fields and key != "name"})


class TorchSettings(OptimizerSettings):
    """Settings that optimizers of torch.optim have: weight_decay, the share of each weight added to its direction."""

    weight_decay: float = Field(0.0, ge=0)


T = TypeVar("T", bound=TorchSettings)


class TorchOptimizer(Optimizer[T]):
    """An optimizer of torch.optim that receives the oracle's gradient.

    It steps on the weights themselves, in torch's own kernel and the weights' dtype. Once its direction is requested,
    it steps on fp32 zeros (`shadow`) instead, with a step size of one, and keeps doing so.
    """

    grade = Grade.FIRST
    queries_per_step = "1 gradient"
    state = (*Optimizer.state, "directed", "inner")
    decoupled: ClassVar[bool]
    """Whether weight decay is kept out of the averages (AdamW) or is part of the gradient (SGD)."""

    def __init__(self, settings: T, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.inner = self.build(parameters)
        self.shadow: list[Tensor] = []
        self.directed = False

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        raise NotImplementedError

    def gradient(self, oracle: Oracle) -> Sequence[Tensor]:
        """The gradient that the torch optimizer receives."""
        return oracle.gradient()

    def move(self, oracle: Oracle) -> None:
        if self.directed:
            super().move(oracle)
        else:
            feed(self.inner, self.parameters, self.gradient(oracle), self.lr)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        gradient, decay = fp32(self.gradient(oracle)), self.settings.weight_decay
        if not self.directed:
            self._move_to_shadow()
        if decay and not self.decoupled:
            gradient = list(torch._foreach_add(gradient, fp32(self.parameters), alpha=decay))
        # The shadow weights are zero, so torch's own decay adds nothing and the step is the direction without decay.
        torch._foreach_zero_(self.shadow)
        feed(self.inner, self.shadow, gradient, lr=1.0)
        torch._foreach_neg_(self.shadow)
        if decay and self.decoupled:
            torch._foreach_add_(self.shadow, fp32(self.parameters), alpha=decay)
        return self.shadow

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved.get("directed"):
            self._move_to_shadow()
        super().load_state_dict(saved)

    def _move_to_shadow(self) -> None:
        averages = self.inner.state_dict()
        self.shadow = zeros(self.parameters)
        self.inner = self.build(self.shadow)
        self.inner.load_state_dict(averages)
        self.directed = True


class SGDSettings(TorchSettings):
    """nesterov: step along the gradient plus the decayed momentum, as if one step ahead."""

    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, and momentum is 0. Set momentum too")
        return self


class SGD(TorchOptimizer[SGDSettings]):
    """Stochastic gradient descent, with momentum if it is set."""

    source = "torch.optim.SGD"
    decoupled = False

    class Settings(SGDSettings):
        name: Literal["sgd"] = "sgd"

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.SGD(
            parameters, momentum=s.momentum, weight_decay=s.weight_decay, nesterov=s.nesterov, fused=True
        )


class AdamSettings(TorchSettings):
    """Settings of Adam in all its forms."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class Adam(TorchOptimizer[AdamSettings]):
    """Adam (Kingma and Ba 2015); with weight decay, AdamW's decoupled form (Loshchilov and Hutter 2019)."""

    source = "torch.optim.AdamW"
    decoupled = True

    class Settings(AdamSettings):
        name: Literal["adam"] = "adam"

    def build(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.AdamW(parameters, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay, fused=True)


class AdamW(Adam):
    """AdamW with its published weight decay: the same trial as `adam` with weight_decay 0.01."""

    source = "arXiv 1711.05101"

    class Settings(AdamSettings):
        name: Literal["adamw"] = "adamw"
        weight_decay: float = Field(0.01, ge=0)

        def plainest(self) -> OptimizerSettings:
            return renamed(self, Adam.Settings)


class MeanOfSigns(Optimizer["MeanOfSigns.Settings"]):
    """Descent along an average of gradient signs, m <- beta m + (1 - beta) sign(g).

    Often presented as sign-Adam, which is the sign of an average. Its direction has more than one bit per coordinate,
    so its grade is first.
    """

    grade = Grade.FIRST
    source = "control"
    control = True
    queries_per_step = "1 gradient"
    state = (*Optimizer.state, "mean")

    class Settings(OptimizerSettings):
        name: Literal["mean_of_signs"] = "mean_of_signs"
        beta: float = Field(0.9, ge=0, lt=1)

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        self.mean = zeros(parameters)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        signs = [g.sign() for g in fp32(oracle.gradient())]
        torch._foreach_lerp_(self.mean, signs, 1 - self.settings.beta)
        return self.mean
