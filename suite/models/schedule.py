"""Step-size schedules: how the step size rises at the beginning of a run, and falls towards its end."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]
"""How the step size falls towards the last step."""


def step_size(lr: float, step: int, steps: int, warmup: int = 0, schedule: Schedule = "constant") -> float:
    """Step size at a step, counted from 0, of a run of so many steps.

    It rises over `warmup` steps, from lr / (warmup + 1), and falls from the first step on: to lr / steps at the last
    one where `schedule` is linear, along half a cosine where it is cosine.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    match schedule:
        case "constant":
            fall = 1.0
        case "linear":
            fall = 1 - step / steps
        case "cosine":
            fall = (1 + math.cos(math.pi * step / steps)) / 2
    return lr * rise * fall
