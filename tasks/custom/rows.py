"""Reads the rows of a custom task's files and makes examples and items of them.

A row is a question with its answer (`question`, `answer`), running text with its continuation (`prompt`, `answer`), or
running text alone (`text`). A multiple-choice row has `choices`, and in `answer` the index of the right one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from tasks.custom.settings import ProbeSettings
from tasks.files import SUFFIXES, Row, as_index, as_text, nearest, read
from tasks.task import Example, Item, ProbeKind, Style, Subset, TaskError

FEWEST = 2
"""Smallest number of rows of a file: one for each split."""

BEGINNINGS = {"question": Style.QUESTION, "prompt": Style.TEXT}


def find(stem: Path) -> Path | None:
    """The file of this name, with or without its suffix; None if there is none."""
    named = [stem] if stem.suffix in SUFFIXES else [stem.with_name(f"{stem.name}{suffix}") for suffix in SUFFIXES]
    return next((file for file in named if os.path.lexists(file)), None)


def rows_of(file: Path, columns: Collection[str]) -> list[Row]:
    """A file's rows without their empty columns.

    Raises:
        TaskError: not readable, too few rows, or a column that is not among `columns`.
    """
    rows = [Row({column: value for column, value in row.items() if value is not None}, row.where) for row in read(file)]
    if len(rows) < FEWEST:
        raise TaskError(f"{file}: {len(rows)} rows; at least {FEWEST} are needed, one for dev and one for test")
    for row in rows:
        for column in row:
            if column not in columns:
                raise TaskError(
                    f"{row.where}: {column}: unknown column.{nearest(column, columns)} (allowed: {', '.join(columns)})"
                )
    return rows


def examples(rows: Sequence[Row], subset: Subset) -> tuple[Example, ...]:
    """Texts to train on, in order.

    Raises:
        TaskError: a row has none of the allowed forms.
    """
    return tuple(_example(row, f"{subset}{index}") for index, row in enumerate(rows))


def items(rows: Sequence[Row], probe: ProbeSettings) -> tuple[Item, ...]:
    """Questions of a probe, in order.

    Raises:
        TaskError: a row has none of the allowed forms, does not fit this kind of probe, or repeats an id.
    """
    parsed = tuple(_item(row, f"{probe.name}{index}", probe.kind) for index, row in enumerate(rows))
    check_ids(parsed)
    return parsed


def check_ids(texts: Sequence[Example | Item]) -> None:
    """Checks that ids are unique.

    Raises:
        TaskError: two texts have the same id.
    """
    first: dict[str, str] = {}
    for text in texts:
        if text.id in first:
            raise TaskError(f"{text.where}: id: {text.id} is that of {first[text.id]} as well. Give each its own")
        first[text.id] = text.where


def _item(row: Row, default: str, kind: ProbeKind) -> Item:
    if kind is ProbeKind.CHOICE:
        beginning, style = _beginning(row)
        choices = row.get("choices")
        if not isinstance(choices, list) or len(choices) < 2:
            raise TaskError(f"{row.where}: choices: a list of two or more texts is expected, not {choices!r}")
        answers = tuple(as_text(Row({"choices": choice}, row.where), "choices") for choice in choices)
        correct = as_index(row, "answer", len(answers))
        if answers.count(answers[correct]) > 1:
            raise TaskError(f"{row.where}: choices: the right one, {answers[correct]!r}, is there twice")
        return Item(_id(row, default), beginning, answers, correct, style, row.where)
    if kind is ProbeKind.GENERATE and "text" in row:
        raise TaskError(f"{row.where}: text: nothing can be generated without a beginning. Write prompt and answer")
    text = _example(row, default)
    return Item(text.id, text.prompt, (text.answer,), style=text.style, where=row.where)


def _example(row: Row, default: str) -> Example:
    if "text" in row:
        for column in ("answer", *BEGINNINGS):
            if column in row:
                raise TaskError(f"{row.where}: {column}: text stands alone. Write prompt and answer, or text")
        return Example(_id(row, default), "", as_text(row, "text"), Style.TEXT, row.where)
    beginning, style = _beginning(row)
    return Example(_id(row, default), beginning, as_text(row, "answer"), style, row.where)


def _beginning(row: Row) -> tuple[str, Style]:
    present = [column for column in BEGINNINGS if column in row]
    if len(present) != 1:
        found = " and ".join(present) or "neither"
        raise TaskError(f"{row.where}: question: question or prompt is expected beside the answer, not {found}")
    return as_text(row, present[0]), BEGINNINGS[present[0]]


def _id(row: Row, default: str) -> str:
    return as_text(row, "id") if "id" in row else default
