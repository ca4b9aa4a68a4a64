"""From a table's rows to what is taught and asked: running text, and two splits that share no question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tasks.files import Row
from tasks.task import Example, Item, Split, Style

T = TypeVar("T")


def alternate(items: Sequence[T], split: Split) -> tuple[T, ...]:
    """Even rows are `dev`, odd rows are `test`: both ask about the same things."""
    return tuple(items[list(Split).index(split) :: 2])


def passages(name: str, rows: Sequence[Row]) -> tuple[Example, ...]:
    """Running text to be taught, from the column `text`; ids are `name` and the row's number."""
    return tuple(
        Example(f"{name}{index}", "", row["text"], Style.TEXT, where=row.where) for index, row in enumerate(rows)
    )


def read_back(name: str, rows: Sequence[Row]) -> list[Item]:
    """Running text that a model is asked for, word by word from its beginning."""
    return [
        Item(f"{name}{index}", "", (row["text"],), style=Style.TEXT, where=row.where) for index, row in enumerate(rows)
    ]
