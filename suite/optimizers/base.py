"""The base class of optimizers: `step(oracle)` moves the weights. The kinds of its oracle queries are its grade."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from suite.config import settings
from suite.config.numbers import Whole
from suite.models.schedule import Schedule, step_size
from suite.oracle.base import Grade, Oracle
from suite.oracle.directions import Direction
from suite.oracle.state import Stateful

KINDS = ("value", "gradient", "directional", "curvature")
"""Kinds of oracle queries, as `Queries` names them."""


class OptimizerSettings(settings.Settings):
    """Settings that every optimizer has.

    Attributes:
        lr: the largest step size.
        schedule: how the step size decays towards the last step.
        warmup: number of steps over which the step size first rises.
        name: of the optimizer, a literal in the settings of each one that is registered.
    """

    lr: float = Field(gt=0)
    schedule: Schedule = "constant"
    warmup: Whole = 0
    name: str = ""

    def factor(self, step: int, steps: int) -> float:
        """Fraction of `lr` used at a step, counted from 0, of a run of `steps` steps."""
        return step_size(1.0, step, steps, self.warmup, self.schedule)

    def plainest(self) -> OptimizerSettings:
        """The same optimizer under its simplest name, e.g. a hybrid that never alternates as the part that it uses."""
        return self


@dataclass(frozen=True, slots=True)
class Run:
    """The run that an optimizer is part of: its length in steps, and the seed of everything it draws."""

    steps: int
    seed: int = 0


S = TypeVar("S", bound=OptimizerSettings)


class Optimizer(Stateful, Generic[S]):
    """Moves the weights, in place, by the results of oracle queries. Its state belongs to one run and starts empty.

    A subclass computes its `direction`; this class moves the weights against it by the step size.

    Args:
        parameters: the oracle's parameters.
    """

    Settings: type[S]
    grade: ClassVar[Grade]
    source: ClassVar[str]
    queries_per_step: ClassVar[str]
    """Oracle queries per step, e.g. `2q value` or `1 gradient + 1 curvature every k` (q: samples, k: the setting
    `every`). `queries` parses it, and a test compares it with the queries that are counted."""
    control: ClassVar[bool] = False
    """Whether it is a control: an optimizer to compare with rather than to use."""
    example: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}
    """Settings with which it does all that it does within six steps on a small model. Tests make it with them."""
    state = (*Stateful.state, "steps_done")

    def __init__(self, settings: S, parameters: Sequence[Tensor], run: Run) -> None:
        self.settings = settings
        self.parameters = parameters
        self.run = run
        self.steps_done = 0

    @classmethod
    def unusable(cls) -> str | None:
        """Why a class of another package cannot be added; None if it can."""
        given = cls.Settings.model_fields.keys()
        for term in cls.queries_per_step.split(" + ") if "queries" not in vars(cls) else ():
            told = re.fullmatch(rf"\d+(q?) ({'|'.join(KINDS)})( every k)?", term)
            if told is None or (told[1] and "zo" not in given) or (told[3] and "every" not in given):
                return (
                    f"has queries_per_step = {cls.queries_per_step!r}, which is not understood. Write it as "
                    "`1 gradient`, `2q value` (with settings `zo`) or `1 gradient + 1 curvature every k` (with a "
                    "setting `every`), or override `queries`"
                )
        return None

    @classmethod
    def check_installed(cls) -> None:
        """Check early that this machine has the packages that the optimizer needs.

        Raises:
            NotInstalledError: a package is missing; the message names the extra to install.
        """

    @classmethod
    def queries(cls, settings: S, steps: int) -> dict[str, int]:
        """Oracle queries of a run of `steps` steps, by kind, as `Metered` will count them."""
        given: dict[str, Any] = dict(settings)  # the notation names settings that not all optimizers have
        counts = dict.fromkeys(KINDS, 0)
        for term in cls.queries_per_step.split(" + "):
            number, kind, *interval = term.split(" ", 2)
            times = int(number.rstrip("q"))
            if number.endswith("q"):
                forward = getattr(given["zo"], "difference", "") == "forward"
                times = given["zo"].samples + 1 if forward else times * given["zo"].samples
            counts[kind] += times * (-(-steps // given["every"]) if interval else steps)
        return counts

    @property
    def lr(self) -> float:
        """Step size of the next step."""
        return self.settings.lr * self.settings.factor(self.steps_done, self.run.steps)

    @property
    def estimate_norm(self) -> float | None:
        """L2 norm of the zeroth-order estimate of the last step; None where there was none."""
        return None

    def step(self, oracle: Oracle) -> None:
        """One step on the oracle's batch.

        Raises:
            Diverged: the result of a query is not finite; the weights have not moved.
        """
        self.move(oracle)
        self.steps_done += 1

    def move(self, oracle: Oracle) -> None:
        """Query the oracle and move the weights."""
        self.apply(self.direction(oracle), self.lr)

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        """The direction of the next step: the weights move by -lr times it. The next call may overwrite it.

        Most do not depend on the step size. Computing it advances the optimizer's own averages.
        """
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, direction: Sequence[Tensor], lr: float) -> None:
        """Move the weights by -lr times a direction, computed in the direction's precision and rounded once."""
        if isinstance(direction, Direction):
            lr, direction = lr * direction.factor, direction.tensors
        for weight, part in zip(self.parameters, direction, strict=True):
            weight.add_(part, alpha=-lr)
