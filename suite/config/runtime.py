"""Where a trial runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suite.config.settings import Settings


class RuntimeSpec(Settings):
    """Where a trial runs. Part of what its numbers depend on, but not of what it is.

    Attributes:
        device: `auto` takes a GPU where there is one.
        threads: CPU threads of one trial. Sums change with it, so it is set, not guessed.
        gradient_checkpointing: recompute each block's activations in the backward pass instead of keeping them. Takes
            less memory and more time, and changes no number.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
