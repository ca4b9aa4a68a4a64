"""How one table becomes two splits that ask about the same things and share no question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tasks.task import Split

T = TypeVar("T")


def alternate(items: Sequence[T], split: Split) -> tuple[T, ...]:
    """Even rows are `dev`, odd rows are `test`."""
    return tuple(items[list(Split).index(split) :: 2])
