"""Reads a benchmark's tables, from a local mirror or from a pinned revision on the hub, and checks every row.

A mirror is a folder per benchmark under the directory that the environment variable `REGRADE_DATA` names. A table is
one split of one configuration. In a mirror it is either laid out as on the hub (folders of Parquet files) or a plain
file: JSON lines, a JSON array, Parquet, or text with one text per line. A mirror that exists is always used, so a run
does not depend on whether the network is up.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

from tasks.plain_text import Unreadable, check_ordinary, check_value, json_array, json_value, read_text, shown
from tasks.task import MissingDataError, TaskError

VARIABLE = "REGRADE_DATA"

SUFFIXES = (".json", ".jsonl", ".parquet", ".txt")
"""Suffixes of plain files, in the order in which they are tried."""


class Row(dict[str, Any]):
    """A row's columns, and where it was read: `FILE: row 12`, counting from 0."""

    __slots__ = ("where",)

    def __init__(self, columns: Mapping[str, Any], where: str) -> None:
        super().__init__(columns)
        self.where = where


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tables of one benchmark are read from.

    Attributes:
        name: name of the benchmark's folder in a mirror.
        hub, revision: data set and commit on the hub.
        folder: the mirror, or None where there is none.
    """

    name: str
    hub: str
    revision: str
    folder: Path | None

    @classmethod
    def find(cls, name: str, hub: str, revision: str) -> Self:
        """The mirror's folder (`name`, or its name on the hub) where `REGRADE_DATA` has one; else the hub."""
        bare = hub.rpartition("/")[2]
        spelled = (name, name.replace("-", "/"), name.replace("-", "_"))
        return cls(name, hub, revision, mirror(*spelled, bare, bare.lower(), hub))

    def __str__(self) -> str:
        """The value of the column `source`. It has no path: paths differ between machines."""
        return f"mirror: {self.name}" if self.folder else f"{self.hub}@{self.revision}"

    def table(
        self,
        config: str,
        split: str | tuple[str, ...] = "train",
        *,
        rows: int | None = None,
        alone: bool = False,
        text: Sequence[str] = (),
        blank: Sequence[str] = (),
        lists: Mapping[str, int] | None = None,
        choices: int | None = None,
    ) -> list[Row]:
        """A table's rows in order, with only these columns.

        Args:
            split: its name; several where revisions differ, of which the first that exists is read.
            rows: how many the published table has; None where that is not known: any number but zero.
            alone: the configuration has no other split, so its file may be named after the configuration only.
            text: columns of text.
            blank: columns of text that may be empty.
            lists: columns that hold a list of texts, with the length of the list.
            choices: how many texts the column `choices` has; `answer` is the index of the right one.

        Raises:
            TaskError: no such table, not readable, or not as published. Names file, row (from 0) and column.
        """
        splits = (split,) if isinstance(split, str) else split
        where, rows_read = self._read(config, splits, alone or split == "train", blanks=bool(blank))
        if not rows_read:
            raise TaskError(f"{where}: empty; {config} has {rows or 'one or more'} rows")
        checked = [_checked(row, text, blank, lists or {}, choices) for row in rows_read]
        if rows is not None and len(checked) != rows:
            raise TaskError(f"{where}: {len(checked)} rows, not the {rows} that {config} was published with")
        return checked

    def _read(self, config: str, splits: tuple[str, ...], alone: bool, blanks: bool) -> tuple[str, list[Row]]:
        """The table's name for messages, and its unchecked rows."""
        if self.folder is None:
            return f"{self.hub} {config}", self._from_hub(config, splits)
        for split in splits:
            if files := _files(self.folder, config, split, alone):
                where = files[0] if len(files) == 1 else self.folder / config
                return str(where), [row for file in files for row in read(file, blanks)]
        names = [config] if alone else [f"{config}/{split}" for split in splits]
        raise MissingDataError(
            f"{self.folder}: no {' or '.join(names)}.json, .jsonl or .parquet, and no folder {config}/ of Parquet files"
            f"{'' if alone else f' of {splits[0]}'}. Copy it from the hub's {self.hub}, or unset {VARIABLE} to read "
            "from there"
        )

    def _from_hub(self, config: str, splits: tuple[str, ...]) -> list[Row]:
        from datasets import load_dataset  # imported here: it takes seconds, and a mirror does not need it

        for split in splits:
            try:
                dataset = load_dataset(self.hub, config, split=split, revision=self.revision)
            except Exception as error:  # the hub's client raises some twenty kinds, of several libraries
                if isinstance(error, ValueError) and split != splits[-1]:
                    continue  # this revision names its split differently
                raise MissingDataError(
                    f"{self.hub}: {config} is not in the local cache and not to be had from the hub "
                    f"({type(error).__name__}: {_first_line(error)}). Go online, or set {VARIABLE} to a directory "
                    f"that has the data set's files in {self.name}/"
                ) from None
            return [Row(row, f"{self.hub} {config}/{split}: row {index}") for index, row in enumerate(dataset)]
        raise AssertionError("a table has at least one split")


def data_root() -> Path | None:
    """The directory that `REGRADE_DATA` names; None where it is not set.

    Raises:
        TaskError: it is set, and there is no such directory.
    """
    if not (named := os.environ.get(VARIABLE)):
        return None
    root = os.path.expanduser(named)
    if not os.path.isdir(root):
        raise MissingDataError(
            f"{VARIABLE}: {named} is no folder. Set it to the directory that holds the data sets, or unset it to read "
            "them from the hub"
        )
    return Path(root)


def mirror(*names: str) -> Path | None:
    """The first of these folders that exists under `REGRADE_DATA`, or None.

    Raises:
        TaskError: `REGRADE_DATA` names no directory.
    """
    root = data_root()
    return next((root / name for name in names if os.path.isdir(root / name)), None) if root else None


def read(file: Path, blanks: bool = False) -> list[Row]:
    """A file's rows, unchecked. A JSON array of bare texts and a text file have one column, `text`.

    Args:
        blanks: whether a blank line of a text file is a row; if not, it is skipped.

    Raises:
        TaskError: its content does not fit its suffix; the message names the row where there is one.
    """
    kind = "parquet" if file.suffix == ".parquet" else "text" if file.suffix == ".txt" else "json"
    try:
        return [Row(columns, f"{file}: row {index}") for index, columns in _columns(file, blanks)]
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, MemoryError) as error:  # pyarrow raises them all
        raise TaskError(f"{file}: not readable as {kind}: {_first_line(error)}") from None


def rows_digest(tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """SHA-256 over tables' rows. It depends on the rows only, not on file format or place."""
    text = json.dumps({name: list(rows) for name, rows in tables.items()}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean x?`, or an empty text when no known word is close."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]}?" if match else ""


def _files(folder: Path, config: str, split: str, alone: bool) -> list[Path]:
    """The files of one table, in order: in the hub's layout, in its converted layout, or plain files."""
    safe, part = glob.escape(config), glob.escape(split)
    layouts = [f"{safe}/{part}-*-of-*.parquet", f"{safe}/{part}/*.parquet"]
    if config == "default":
        layouts.append(f"data/{part}-*-of-*.parquet")
    for layout in layouts:
        if files := sorted(folder.glob(layout)):
            return files
    names = [f"{config}/{split}", f"{config}_{split}", *([config] if alone else [])]
    for name in names:
        for suffix in SUFFIXES:
            if os.path.lexists(file := folder / f"{name}{suffix}"):
                return [file]
    return sorted((folder / config).rglob("*.parquet")) if alone else []


def _columns(file: Path, blanks: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A file's rows with their numbers."""
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        check_ordinary(file)
        yield from _numbered(iter(pq.ParquetFile(file).read().to_pylist()))
        return
    text = read_text(file)
    if file.suffix == ".txt":
        lines = text.removesuffix("\n").split("\n") if text else []
        yield from (row for row in _numbered(iter(lines)) if blanks or row[1]["text"].strip())
    elif text.lstrip().startswith("["):
        yield from _numbered(json_array(text))
    else:
        # Not splitlines: JSON strings may contain other line separators unescaped.
        yield from _numbered(map(json_value, (line for line in text.split("\n") if line.strip())))


def _numbered(values: Iterator[Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Values as rows with their numbers, by which an error is named."""
    for index in count():
        try:
            value = next(values)
            check_value(value)
            row = {"text": value} if isinstance(value, str) else value
            if not isinstance(row, dict):
                raise Unreadable(f"columns by their names are expected, not {shown(value)}")
        except StopIteration:
            return
        except Unreadable as error:
            raise Unreadable(f"row {index}: {error}") from None
        yield index, row


def _checked(row: Row, text: Sequence[str], blank: Sequence[str], lists: Mapping[str, int], choices: int | None) -> Row:
    columns: dict[str, Any] = {column: as_text(row, column) for column in text}
    columns |= {column: as_text(row, column, blank=True) for column in blank}
    columns |= {column: _texts(row, column, count) for column, count in lists.items()}
    if choices is not None:
        columns["choices"] = _texts(row, "choices", choices, blank=True)
        columns["answer"] = as_index(row, "answer", len(columns["choices"]))
    return Row(columns, row.where)


def as_text(row: Row, column: str, blank: bool = False) -> str:
    """A column of text.

    Raises:
        TaskError: it is missing, empty (unless `blank`), or no text.
    """
    value = row.get(column)
    if value is None:
        raise TaskError(f"{row.where}: {column}: missing")
    if not isinstance(value, str) or not (blank or value.strip()):
        raise TaskError(f"{row.where}: {column}: text is expected, not {value!r}")
    return value


def as_index(row: Row, column: str, choices: int) -> int:
    """A column with the index of the right choice, counting from 0.

    Raises:
        TaskError: it is missing, not an integer, or out of range.
    """
    value = row.get(column)
    if value is None:
        raise TaskError(f"{row.where}: {column}: missing; the right one of {choices} choices is expected, from 0")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < choices:
        raise TaskError(f"{row.where}: {column}: a whole number from 0 to {choices - 1} is expected, not {value!r}")
    return value


def _texts(row: Row, column: str, count: int, blank: bool = False) -> list[str]:
    value = row.get(column)
    if value is None:
        raise TaskError(f"{row.where}: {column}: missing")
    if not isinstance(value, list) or len(value) != count:
        given = f"one of {len(value)}" if isinstance(value, list) else repr(value)
        raise TaskError(f"{row.where}: {column}: a list of {count} texts is expected, not {given}")
    return [as_text(Row({column: one}, row.where), column, blank) for one in value]


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0]
