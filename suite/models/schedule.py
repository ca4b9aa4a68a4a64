"""Step-size schedules: warmup at the beginning of a run, and decay towards its end."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]
"""How the step size decays towards the last step."""


def step_size(lr: float, step: int, steps: int, warmup: int = 0, schedule: Schedule = "constant") -> float:
    """Step size at a step, counted from 0, of a run of so many steps.

    It rises over `warmup` steps, from lr / (warmup + 1), and decays from the first step on: to lr / steps at the last
    one with a linear schedule, along half a cosine with a cosine schedule.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    match schedule:
        case "constant":
            decay = 1.0
        case "linear":
            decay = 1 - step / steps
        case "cosine":
            decay = (1 + math.cos(math.pi * step / steps)) / 2
    return lr * rise * decay
