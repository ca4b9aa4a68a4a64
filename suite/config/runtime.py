"""The runtime of a trial: its device, threads and memory use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suite.config.numbers import Few
from suite.config.settings import Settings


class RuntimeSpec(Settings):
    """Where a trial runs. Its numbers depend on it, but the trial's id does not.

    Attributes:
        device: `auto` uses a GPU where there is one.
        threads: CPU threads of one trial. Sums change with their number, so it is never guessed.
        gradient_checkpointing: recompute each block's activations in the backward pass instead of storing them. Takes
            less memory and more time, and changes no number.
        save_minutes: an unlearning run saves its weights and state after so many minutes, or later where saving would
            take more than a twentieth of the run; a killed run goes on from there, to the same bits. 0: as often as
            that allows.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Few = 1
    gradient_checkpointing: bool = False
    save_minutes: float = Field(10.0, ge=0)
