"""A faster way to compute the same numbers that not every architecture supports, and the test that it is sound.

A model with windowed attention, with positions derived from the mask, or without attention may accept a branching row
or our cache and return wrong numbers without an error. So the faster way is compared with the plain one before it is
used: on the first texts of an architecture, and again whenever a text is longer than any that was compared, because
an attention window only shows in texts that are longer than it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Shortcut:
    """What is known about one faster way for one architecture.

    Attributes:
        sound: whether it may be used.
        checked: length of the longest text for which it has been compared, in tokens.
    """

    sound: bool = True
    checked: int = 0

    def compare(self, fast: Sequence[float], plain: Sequence[float], length: int, dtype: torch.dtype) -> bool:
        """Whether both ways gave the same numbers for a text of this length. The result is stored.

        Two orders of summation move log-probabilities of a 135M Llama by 4e-5 in fp32 and by 0.5 in bf16 (a logit
        between 16 and 32 is rounded to 1/8 there), wrong positions or a wrong mask by 8 or more in either. The bound
        is 1e-3, or 128 times the dtype's epsilon if that is more (1.0 in bf16). Beyond 16 it grows in proportion to the
        number, for models that unlearning has wrecked. If the plain numbers are not finite, nothing is decided.
        """
        if not all(map(math.isfinite, plain)):
            return True
        worst = max((abs(a - b) / max(1.0, abs(b) / 16) for a, b in zip(fast, plain, strict=True)), default=0.0)
        self.sound = worst <= max(1e-3, 128 * torch.finfo(dtype).eps)  # NaN compares false
        self.checked = max(self.checked, length)
        return self.sound

    def refused(self, error: Exception) -> None:
        """Note that the faster way raised an error: before anything was compared, the architecture does not support it.

        Raises:
            Exception: the error itself, if the way has worked before or memory ran out.
        """
        if self.checked or isinstance(error, torch.OutOfMemoryError):
            raise error
        self.sound = False
