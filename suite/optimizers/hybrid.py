"""Hybrids: first-order and zeroth-order steps in one run (arXiv 2510.00761, Sec. 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.optimizers.base import KINDS, Optimizer, OptimizerSettings, Run
from suite.optimizers.parts import FIRST_ORDER, ZEROTH_ORDER, FirstPart, ZerothPart, standalone_settings
from suite.optimizers.zeroth_order import ZerothOrderOptimizer, ZerothOrderSettings
from suite.oracle.base import Grade, Oracle
from suite.oracle.directions import LazyTensors


def zeroth_steps(steps: int, zo_ratio: float) -> int:
    """How many steps are zeroth-order."""
    return math.floor(zo_ratio * steps + 0.5)


def layout(steps: int, zo_ratio: float, block: int, ends: str = "zeroth") -> list[bool]:
    """Which steps are zeroth-order: round(zo_ratio * steps) of them, in periods of `block`.

    Periods are laid out backwards from the last step. Within a period the steps of the other part come first, so a run
    ends on the part that `ends` names. Shares that are not integers are rounded up until the total is reached.
    """
    zeroth = zeroth_steps(steps, zo_ratio)
    if ends == "first":
        return [not first for first in _ending_on(steps, 1 - zo_ratio, block, steps - zeroth)]
    return _ending_on(steps, zo_ratio, block, zeroth)


def _ending_on(steps: int, ratio: float, block: int, total: int) -> list[bool]:
    """For each step whether it belongs to the part that ends the run; `total` steps do."""
    schedule: list[bool] = []  # backwards from the last step
    assigned = 0
    while len(schedule) < steps:
        length = min(block, steps - len(schedule))
        reached = len(schedule) + length
        # 1e-9: 0.3 * 10 is a little more than 3 in binary
        due = total if reached == steps else min(total, math.ceil(ratio * reached - 1e-9))
        schedule += [True] * (due - assigned) + [False] * (length - (due - assigned))
        assigned = due
    return schedule[::-1]


class Hybrid(Optimizer["Hybrid.Settings"]):
    """A first-order and a zeroth-order optimizer in one run, each with its own state.

    `alternate`: blocks of first-order and blocks of zeroth-order steps (the paper's). `mix`: every step is
    lr (1 - w) d_first + zo_lr w d_zeroth, with w the `mix_weight` and d the parts' directions.
    """

    grade = Grade.HYBRID
    source = "arXiv 2510.00761"
    queries_per_step = "1 gradient, or 2q value"
    example: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "block": 2}
    state = (*Optimizer.state, "first", "zeroth")

    class Settings(ZerothOrderSettings):
        """The two parts, and how they are alternated or mixed.

        Attributes:
            zo_ratio: fraction of the steps that are zeroth-order. block: steps of one period (first + zeroth).
            ends: the part whose steps end the run.
            mix_weight: weight of the zeroth-order direction in a mix.
            zo_lr: step size of the zeroth-order part; `lr` if it is not given.
            first, zeroth: the parts, with their own settings.
            zo: directions of the zeroth-order part.
        """

        name: Literal["hybrid"] = "hybrid"
        kind: Literal["alternate", "mix"] = "alternate"
        zo_ratio: float = Field(0.5, ge=0, le=1)
        block: int = Field(40, ge=2)
        ends: Literal["zeroth", "first"] = "zeroth"
        mix_weight: float | None = Field(None, ge=0, le=1)
        zo_lr: float | None = Field(None, gt=0)
        first: FirstPart = FIRST_ORDER.default("adam")
        zeroth: ZerothPart = ZEROTH_ORDER.default("r_adazo")

        @model_validator(mode="after")
        def _belong_together(self) -> Self:
            if self.kind == "mix":
                if self.mix_weight is None:
                    raise ValueError("kind=mix needs mix_weight, the weight of the zeroth-order direction: 0..1")
                if alone := {"zo_ratio", "block", "ends"} & self.changed().keys():
                    raise ValueError(f"{min(alone)} belongs to kind=alternate. A mix has mix_weight")
            elif self.mix_weight is not None:
                raise ValueError("mix_weight belongs to kind=mix. An alternating hybrid has zo_ratio and block")
            self.first_settings(), self.zeroth_settings()
            return self

        @property
        def share(self) -> float:
            """Zeroth-order share of the run: the fraction of its steps, or the weight in each step."""
            return self.zo_ratio if self.mix_weight is None else self.mix_weight

        def first_settings(self) -> OptimizerSettings:
            return standalone_settings(FIRST_ORDER, self.first, self, lr=self.lr)

        def zeroth_settings(self) -> OptimizerSettings:
            return standalone_settings(ZEROTH_ORDER, self.zeroth, self, lr=self.zo_lr or self.lr, zo=self.zo)

        def plainest(self) -> OptimizerSettings:
            """With a share of 0 or 1 it is one of its parts."""
            if 0 < self.share < 1:
                return self
            return (self.zeroth_settings() if self.share else self.first_settings()).plainest()

    @classmethod
    def queries(cls, settings: Settings, steps: int) -> dict[str, int]:
        zeroth = steps if settings.kind == "mix" else zeroth_steps(steps, settings.zo_ratio)
        first_part, zeroth_part = settings.first_settings(), settings.zeroth_settings()
        first = FIRST_ORDER[first_part.name].queries(first_part, steps if settings.kind == "mix" else steps - zeroth)
        other = ZEROTH_ORDER[zeroth_part.name].queries(zeroth_part, zeroth)
        return {kind: first[kind] + other[kind] for kind in KINDS}

    def __init__(self, settings: Settings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        first, zeroth = settings.first_settings(), settings.zeroth_settings()
        self.first: Optimizer[Any] = FIRST_ORDER[first.name](first, parameters, run)
        self.zeroth: ZerothOrderOptimizer[Any] = ZEROTH_ORDER[zeroth.name](zeroth, parameters, run)
        self._is_zeroth = layout(run.steps, settings.zo_ratio, settings.block, settings.ends)

    @property
    def lost_to_rounding(self) -> int:
        """Number of differences so far that may be due to rounding alone."""
        return self.zeroth.lost_to_rounding

    @property
    def lr(self) -> float:
        """Step size of the part whose step is next; in a mix that of the first-order part."""
        part = self.zeroth if self.settings.kind == "alternate" and self._is_zeroth[self.steps_done] else self.first
        return part.settings.lr * part.settings.factor(self.steps_done, self.run.steps)

    @property
    def estimate_norm(self) -> float | None:
        return self.zeroth.estimate_norm

    def move(self, oracle: Oracle) -> None:
        # both follow the run's schedule, not their own count
        self.first.steps_done = self.zeroth.steps_done = self.steps_done
        if self.settings.mix_weight is not None:
            self._mix(oracle, self.settings.mix_weight)
        else:
            (self.zeroth if self._is_zeroth[self.steps_done] else self.first).move(oracle)

    @torch.no_grad()
    def _mix(self, oracle: Oracle, weight: float) -> None:
        with torch.enable_grad():
            first = self.first.direction(oracle)
        zeroth = self.zeroth.direction(oracle)  # both directions are computed before the weights move
        first_scale, zeroth_scale = self.first.lr * (1 - weight), self.zeroth.lr * weight
        self.apply(
            LazyTensors(len(first), lambda i: torch.add(first[i] * first_scale, zeroth[i], alpha=zeroth_scale)), 1.0
        )
