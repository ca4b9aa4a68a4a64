"""Hybrids: first-order steps for what they learn, zeroth-order steps for where they end (arXiv 2510.00761, Sec. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from suite.optimizers.base import KINDS, Optimizer, OptimizerSettings, Run
from suite.optimizers.estimates import ZerothOrder
from suite.optimizers.parts import FIRST_ORDER, ZEROTH_ORDER, whole
from suite.oracle.base import Grade, Oracle
from suite.oracle.directions import Lazily


def layout(steps: int, zo_ratio: float, block: int, ends: str = "zeroth") -> list[bool]:
    """Which steps are zeroth-order: round(zo_ratio * steps) of them, in periods of `block`.

    Periods are laid from the last step back. Within a period the steps of the other part come first, so a run ends on
    the part that `ends` names. A period whose share of these is not whole takes one more, until the total is reached.
    """
    zeroth = math.floor(zo_ratio * steps + 0.5)
    if ends == "first":
        return [not first for first in _ending_on(steps, 1 - zo_ratio, block, steps - zeroth)]
    return _ending_on(steps, zo_ratio, block, zeroth)


def _ending_on(steps: int, ratio: float, block: int, total: int) -> list[bool]:
    """Which steps are of the part that ends the run; `total` of them are."""
    schedule: list[bool] = []  # from the last step back
    given = 0
    while len(schedule) < steps:
        length = min(block, steps - len(schedule))
        reached = len(schedule) + length
        # 1e-9: 0.3 * 10 is a little more than 3 in binary
        due = total if reached == steps else min(total, math.ceil(ratio * reached - 1e-9))
        schedule += [True] * (due - given) + [False] * (length - (due - given))
        given = due
    return schedule[::-1]


class Hybrid(Optimizer):
    """A first-order and a zeroth-order optimizer in one run, each with its own state.

    `alternate`: blocks of one and blocks of the other (the paper's). `mix`: every step goes
    lr (1 - w) d_first + zo_lr w d_zeroth, with w the `mix_weight` and d the parts' directions.
    """

    grade = Grade.HYBRID
    source = "arXiv 2510.00761"
    asks = "1 gradient, or 2q value"
    state = ("steps_done", "first", "zeroth")

    class Settings(OptimizerSettings):
        """What is alternated or mixed, and how much of which.

        Attributes:
            zo_ratio: share of the steps that are zeroth-order. block: steps of one first + zeroth period.
            ends: the part whose steps end the run.
            mix_weight: weight of the zeroth-order direction in a mix.
            zo_lr: step size of the zeroth-order part; `lr` where it is not given.
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
        first: FIRST_ORDER.parts = FIRST_ORDER.default("adam")  # type: ignore[name-defined]
        zeroth: ZEROTH_ORDER.parts = ZEROTH_ORDER.default("r_adazo")  # type: ignore[name-defined]
        zo: ZerothOrder = ZerothOrder()

        @model_validator(mode="after")
        def _belong_together(self) -> Hybrid.Settings:
            if self.kind == "mix":
                if self.mix_weight is None:
                    raise ValueError("kind=mix needs mix_weight, the weight of the zeroth-order direction: 0..1")
                if alone := {"zo_ratio", "block", "ends"} & self.changed().keys():
                    raise ValueError(f"{min(alone)} belongs to kind=alternate. A mix has mix_weight")
            elif self.mix_weight is not None:
                raise ValueError("mix_weight belongs to kind=mix. An alternating hybrid has zo_ratio and block")
            self.first_whole(), self.zeroth_whole()
            return self

        @property
        def share(self) -> float:
            """Share of zeroth-order in the run: of the steps, or of each step."""
            return self.zo_ratio if self.mix_weight is None else self.mix_weight

        def first_whole(self) -> OptimizerSettings:
            return whole(FIRST_ORDER, self.first, self, lr=self.lr)

        def zeroth_whole(self) -> OptimizerSettings:
            return whole(ZEROTH_ORDER, self.zeroth, self, lr=self.zo_lr or self.lr, zo=self.zo)

        def plainest(self) -> OptimizerSettings:
            """A share of 0 or 1 is the pure part."""
            if 0 < self.share < 1:
                return self
            return (self.zeroth_whole() if self.share else self.first_whole()).plainest()

    @classmethod
    def queries(cls, settings: OptimizerSettings, steps: int) -> dict[str, int]:
        zeroth = steps if settings.kind == "mix" else sum(layout(steps, settings.zo_ratio, settings.block))
        first, other = settings.first_whole(), settings.zeroth_whole()
        of_first = FIRST_ORDER[first.name].queries(first, steps if settings.kind == "mix" else steps - zeroth)
        of_zeroth = ZEROTH_ORDER[other.name].queries(other, zeroth)
        return {kind: of_first[kind] + of_zeroth[kind] for kind in KINDS}

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], run: Run) -> None:
        super().__init__(settings, parameters, run)
        first, zeroth = settings.first_whole(), settings.zeroth_whole()
        self.first: Optimizer = FIRST_ORDER[first.name](first, parameters, run)
        self.zeroth: Optimizer = ZEROTH_ORDER[zeroth.name](zeroth, parameters, run)
        self._is_zeroth = layout(run.steps, settings.zo_ratio, settings.block, settings.ends)

    @property
    def drowned(self) -> int:
        """Differences so far that rounding may have made."""
        return self.zeroth.drowned

    def move(self, oracle: Oracle) -> None:
        self.first.steps_done = self.zeroth.steps_done = (
            self.steps_done
        )  # both follow the run's schedule, not their own count
        if self.settings.kind == "mix":
            self._mix(oracle)
        else:
            (self.zeroth if self._is_zeroth[self.steps_done] else self.first).move(oracle)

    @torch.no_grad()
    def _mix(self, oracle: Oracle) -> None:
        weight = self.settings.mix_weight
        with torch.enable_grad():
            first = self.first.direction(oracle)
        zeroth = self.zeroth.direction(oracle)  # both are asked before the weights move
        of_first, of_zeroth = self.first.lr * (1 - weight), self.zeroth.lr * weight
        self.apply(Lazily(len(first), lambda i: torch.add(first[i] * of_first, zeroth[i], alpha=of_zeroth)), 1.0)
