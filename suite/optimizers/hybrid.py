"""The hybrid: first-order steps for what they learn, zeroth-order steps for where they end.

arXiv 2510.00761, Sec. 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from suite.optimizers.base import Optimizer, OptimizerSettings, Plan
from suite.optimizers.first_order import Adam
from suite.optimizers.zeroth_order import RAdaZO, ZerothOrder
from suite.oracle import Grade, Oracle


def layout(steps: int, zo_ratio: float, block: int) -> list[bool]:
    """Which steps are zeroth-order: round(zo_ratio * steps) of them, in periods of `block`.

    Periods are laid from the last step back. Within a period the first-order steps come first, so a run ends on zeroth.
    A period whose share is not whole takes one step more, until the total is reached.
    """
    total = math.floor(zo_ratio * steps + 0.5)
    schedule: list[bool] = []  # from the last step back
    given = 0
    while len(schedule) < steps:
        length = min(block, steps - len(schedule))
        reached = len(schedule) + length
        # 1e-9: 0.3 * 10 is a little more than 3 in binary
        due = total if reached == steps else min(total, math.ceil(zo_ratio * reached - 1e-9))
        schedule += [True] * (due - given) + [False] * (length - (due - given))
        given = due
    return schedule[::-1]


class Hybrid(Optimizer):
    """Alternates blocks of Adam and of R-AdaZO, each with its own state, and ends on R-AdaZO."""

    grade = Grade.HYBRID
    source = "arXiv 2510.00761"

    class Settings(OptimizerSettings):
        """zo_ratio: share of the steps that are zeroth-order. block: steps of one first + zeroth period.

        zo_lr: step size of the zeroth-order steps; `lr` where it is not given.
        """

        name: Literal["hybrid"] = "hybrid"
        zo_ratio: float = Field(0.5, ge=0, le=1)
        block: int = Field(40, ge=2)
        zo_lr: float | None = Field(None, gt=0)
        betas: tuple[float, float] = (0.9, 0.999)
        zo_betas: tuple[float, float] = (0.9, 0.99)
        zo: ZerothOrder = ZerothOrder()

        def pure(self) -> OptimizerSettings | None:
            """The pure optimizer that a ratio of 0 or 1 is."""
            shared = {"schedule": self.schedule, "warmup": self.warmup}
            if self.zo_ratio == 0:
                return Adam.Settings(lr=self.lr, betas=self.betas, **shared)
            if self.zo_ratio == 1:
                return RAdaZO.Settings(lr=self.zo_lr or self.lr, betas=self.zo_betas, zo=self.zo, **shared)
            return None

    def __init__(self, settings: OptimizerSettings, parameters: Sequence[Tensor], plan: Plan) -> None:
        super().__init__(settings, parameters, plan)
        shared = {"schedule": settings.schedule, "warmup": settings.warmup}
        first = Adam.Settings(lr=settings.lr, betas=settings.betas, **shared)
        zeroth = RAdaZO.Settings(lr=settings.zo_lr or settings.lr, betas=settings.zo_betas, zo=settings.zo, **shared)
        self.first, self.zeroth = Adam(first, parameters, plan), RAdaZO(zeroth, parameters, plan)
        self.layout = layout(plan.steps, settings.zo_ratio, settings.block)

    def move(self, oracle: Oracle) -> None:
        part = self.zeroth if self.layout[self.taken] else self.first
        part.taken = self.taken  # both follow the run's schedule, not their own count
        part.move(oracle)
