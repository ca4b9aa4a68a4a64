"""The runtime of a trial: its device, threads and memory use."""

from __future__ import annotations

from typing import Literal

from suite.config.numbers import Few
from suite.config.settings import Settings


class RuntimeSpec(Settings):
    """Where a trial runs. Its numbers depend on it, but the trial's id does not.

    Attributes:
        device: `auto` uses a GPU where there is one.
        threads: CPU threads of one trial. Sums change with their number, so it is never guessed.
        gradient_checkpointing: recompute each block's activations in the backward pass instead of storing them. Takes
            less memory and more time, and changes no number.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Few = 1
    gradient_checkpointing: bool = False
