"""A faster way to the same numbers that not every architecture takes, and how it comes to be trusted.

A model whose attention has a window, whose positions follow from the mask, or which attends to nothing at all, may
take a row of branches or a foreign cache and answer wrongly without a word. So the faster way is compared with the
plain one before it is used: on the first texts of an architecture, and again whenever a text is longer than any that
was compared, because a window shows beyond its width alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Shortcut:
    """What is known of one way and one architecture.

    Attributes:
        sound: whether it may be used.
        checked: length of the longest text for which it has been compared, in tokens.
    """

    sound: bool = True
    checked: int = 0

    def compare(self, fast: Sequence[float], plain: Sequence[float], length: int, dtype: torch.dtype) -> bool:
        """Whether both ways gave the same numbers for a text of this length; remembered.

        Two orders of summation move log-probabilities of a 135M Llama by 4e-5 in fp32 and by 0.5 in bf16 (a logit
        between 16 and 32 is rounded to 1/8 there), wrong positions or a wrong mask by 8 or more in either. The bounds
        are 1e-3, and 128 roundings of 1 where that is more: 1.0 in bf16; in proportion for numbers beyond 16, as a
        wrecked model gives them. One whose numbers are not finite decides nothing, for itself or for the next.
        """
        if not all(map(math.isfinite, plain)):
            return True
        worst = max((abs(a - b) / max(1.0, abs(b) / 16) for a, b in zip(fast, plain, strict=True)), default=0.0)
        self.sound = worst <= max(1e-3, 128 * torch.finfo(dtype).eps)  # NaN compares false
        self.checked = max(self.checked, length)
        return self.sound

    def refused(self, error: Exception) -> None:
        """The architecture raised. Before anything was compared this is its answer; afterwards it is an error.

        Raises:
            Exception: the error itself, where the way has worked before or the memory is full.
        """
        if self.checked or isinstance(error, torch.OutOfMemoryError):
            raise error
        self.sound = False
