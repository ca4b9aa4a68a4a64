"""From a table's rows to examples and items, and the division into two splits that share no question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tasks.files import Row
from tasks.task import Example, Item, Split, Style

T = TypeVar("T")


def alternate(items: Sequence[T], split: Split) -> tuple[T, ...]:
    """The items of a split: even rows are `dev`, odd rows are `test`, so both cover the same subjects."""
    return tuple(items[list(Split).index(split) :: 2])


def passages(name: str, rows: Sequence[Row]) -> tuple[Example, ...]:
    """Training examples of running text, from the column `text`; ids are `name` and the row's number."""
    return tuple(
        Example(f"{name}{index}", "", row["text"], Style.TEXT, where=row.where) for index, row in enumerate(rows)
    )


def read_back(name: str, rows: Sequence[Row]) -> list[Item]:
    """Items of running text, scored from the first token on: the prompt is empty."""
    return [
        Item(f"{name}{index}", "", (row["text"],), style=Style.TEXT, where=row.where) for index, row in enumerate(rows)
    ]
