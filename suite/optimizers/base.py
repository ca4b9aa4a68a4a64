"""What an optimizer is: `step(oracle)`. Its grade is what it asks of the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from suite.config import settings
from suite.models.schedule import Schedule, step_size
from suite.oracle.base import Grade, Oracle
from suite.oracle.directions import Direction
from suite.oracle.state import Stateful

KINDS = ("value", "gradient", "directional", "curvature")
"""Kinds of questions, as the meter names them."""


class OptimizerSettings(settings.Settings):
    """Settings that every optimizer has.

    Attributes:
        lr: step size at its largest.
        schedule: how the step size falls towards the last step.
        warmup: steps over which it first rises.
    """

    lr: float = Field(gt=0)
    schedule: Schedule = "constant"
    warmup: int = Field(0, ge=0)

    def factor(self, step: int, steps: int) -> float:
        """Share of `lr` used at a step, counted from 0, of a run of so many steps."""
        return step_size(1.0, step, steps, self.warmup, self.schedule)

    def plainest(self) -> OptimizerSettings:
        """The same optimizer under its plainest name: a hybrid that never alternates is its part."""
        return self


@dataclass(frozen=True, slots=True)
class Run:
    """The run that an optimizer is part of: its length in steps, and the seed of everything it draws."""

    steps: int
    seed: int = 0


class Optimizer(Stateful):
    """Moves the weights, in place, by what an oracle answers. States belong to one run and start empty.

    A new one says its `direction`; moving against it, by the step size, is the same for all.

    Args:
        parameters: the oracle's parameters.
    """

    Settings: ClassVar[type[OptimizerSettings]] = OptimizerSettings
    grade: ClassVar[Grade]
    source: ClassVar[str]
    asks: ClassVar[str]
    """Questions per step, e.g. `2q value` or `1 gradient + 1 curvature every k` (q: samples, k: the setting `every`).
    `asked` reads it, and a test compares that with the meter."""
    control: ClassVar[bool] = False
    """Whether it is there to be compared with rather than to be used."""
    state = ("steps_done",)

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], run: Run) -> None:
        self.settings = settings
        self.parameters = parameters
        self.run = run
        self.steps_done = 0

    @classmethod
    def check_installed(cls) -> None:
        """Refuse early what this machine lacks a package for.

        Raises:
            SpecError: naming the extra to install.
        """

    @classmethod
    def queries(cls, settings: OptimizerSettings, steps: int) -> dict[str, int]:
        """Questions of a run of so many steps, by kind, as the meter will count them."""
        counts = dict.fromkeys(KINDS, 0)
        for term in cls.asks.split(" + "):
            number, kind, *interval = term.split(" ", 2)
            times = int(number.rstrip("q"))
            if number.endswith("q"):
                forward = getattr(settings.zo, "difference", "") == "forward"
                times = settings.zo.samples + 1 if forward else times * settings.zo.samples
            counts[kind] += times * (-(-steps // settings.every) if interval else steps)
        return counts

    @property
    def lr(self) -> float:
        """Step size of the step to come."""
        return self.settings.lr * self.settings.factor(self.steps_done, self.run.steps)

    def step(self, oracle: Oracle) -> None:
        """One step on the oracle's batch.

        Raises:
            Diverged: an answer is not finite; the weights have not moved.
        """
        self.move(oracle)
        self.steps_done += 1

    def move(self, oracle: Oracle) -> None:
        """Ask, and move the weights."""
        self.apply(self.direction(oracle), self.lr)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        """The direction of the step to come, of which the weights move -lr. The next call may overwrite it.

        It does not depend on the step size, and asking for it advances the optimizer's own averages.
        """
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, direction: Sequence[Tensor], lr: float) -> None:
        """Move the weights by -lr times a direction, in the direction's precision, rounded once."""
        if isinstance(direction, Direction):
            direction, lr = direction.tensors, lr * direction.factor
        for weight, part in zip(self.parameters, direction, strict=True):
            weight.add_(part, alpha=-lr)
