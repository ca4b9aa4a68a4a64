"""Whole numbers of settings, with the bounds that they all have: one limit each, instead of one per setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from tasks.plain_text import cut, shown

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

MOST_SEEDS = 100
"""Most seeds of one kind in a trial, as many as a board reads (`leaderboard.board.schema`)."""

Seeds = Seed | tuple[Seed, ...]
"""One seed, or several in a list; `one_or_several` says what is wrong with them."""


def one_or_several(seeds: Any) -> int | tuple[int, ...]:
    """A seed, or those of a list; of a list of one the seed itself.

    Raises:
        ValueError: something else, a number out of range, or one that is there twice.
    """
    listed = list(seeds) if isinstance(seeds, list | tuple) else [seeds]
    if not listed:
        raise ValueError("at least one seed is expected, not an empty list")
    if len(listed) > MOST_SEEDS:
        raise ValueError(f"at most {MOST_SEEDS} seeds are expected, not {len(listed):,}")
    for seed in listed:
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise ValueError(f"a whole number or a list of whole numbers is expected, not {shown(seeds)}")
        if not 0 <= seed < 2**32:
            bound = "at least 0" if seed < 0 else f"less than {2**32:,}"
            raise ValueError(f"must be {bound}, not {shown(seed)}")
    return listed[0] if len(listed) == 1 else tuple(each_once(listed))


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
