"""Whole numbers of settings, with the bounds that they all have: one limit each, instead of one per setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from tasks.plain_text import cut

LARGEST = 10**9
"""Whoever writes a larger count has mistyped it, and it would not fit what 32-bit indices count."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
"""A count that may be zero."""

Few = Annotated[int, Field(ge=1, le=10_000)]
"""A count of things that are held at once, listed, or multiplied with each other."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What torch, NumPy and Optuna all take."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""The share of an average that stays; at 1 it would never begin to move."""

Values = TypeVar("Values", bound=Sequence)


def each_once(values: Values) -> Values:
    """The values of a list.

    Raises:
        ValueError: one of them is there twice.
    """
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{cut(str(value))} is there twice. Keep one of them")
    return values
