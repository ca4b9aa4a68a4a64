"""Reading a benchmark's tables, from a local mirror or from a pinned revision on the hub, and checking every row.

A mirror is a folder per benchmark under the directory that the environment variable `REGRADE_DATA` names. A table is a
file there: JSON lines or a JSON array (`.json`, `.jsonl`), or Parquet; or a folder of Parquet files, as the hub lays
them out. A mirror that is there is used, whatever the network can do, so a run does not change when a cable is pulled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tasks.task import TaskError

VARIABLE = "REGRADE_DATA"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tables of one benchmark are read from.

    Attributes:
        name: of the benchmark's folder in a mirror.
        hub, revision: data set and commit on the hub; one table is one configuration, split `train`.
        folder: the mirror, or None where there is none.
    """

    name: str
    hub: str
    revision: str
    folder: Path | None

    @classmethod
    def find(cls, name: str, hub: str, revision: str) -> Self:
        """The mirror's folder `name` where `REGRADE_DATA` has one, else the hub."""
        mirror = os.environ.get(VARIABLE)
        folder = Path(mirror).expanduser() / name if mirror else None
        return cls(name, hub, revision, folder if folder and folder.is_dir() else None)

    def table(self, name: str, *, rows: int, text: Sequence[str], lists: Mapping[str, int] | None = None) -> list[Row]:
        """A table's rows in order, with these columns alone.

        Args:
            rows: how many the published table has.
            text: columns of text.
            lists: columns of texts, and how many each row has.

        Raises:
            TaskError: no such table, not readable, or not as published; naming file, row (from 0) and field.
        """
        where, found = self._read(name)
        if not found:
            raise TaskError(f"{where}: empty; {name} has {rows} rows")
        checked = [
            {
                **{column: _text(row.get(column), f"{where}: row {index}: {column}") for column in text},
                **{
                    column: _texts(row.get(column), count, f"{where}: row {index}: {column}")
                    for column, count in (lists or {}).items()
                },
            }
            for index, row in enumerate(found)
        ]
        if len(checked) != rows:
            raise TaskError(f"{where}: {len(checked)} rows, not the {rows} that {name} was published with")
        return checked

    def _read(self, name: str) -> tuple[str, list[Row]]:
        """What to call the table in a message, and its rows unchecked."""
        from datasets import load_dataset  # here: it takes seconds to import, and `pocket` needs none of it

        if self.folder is None:
            try:
                return f"{self.hub} {name}", list(load_dataset(self.hub, name, split="train", revision=self.revision))
            except Exception as error:  # the hub's client raises some twenty kinds, of several libraries
                raise TaskError(
                    f"{self.hub}: {name} is not in the local cache and not to be had from the hub "
                    f"({type(error).__name__}: {_first_line(error)}). Go online, or set {VARIABLE} to a directory "
                    f"that has the data set's files in {self.name}/"
                ) from None
        files = _files(self.folder, name)
        if not files:
            raise TaskError(
                f"{self.folder}: no {name}.json, .jsonl or .parquet, and no folder {name}/ of Parquet files. "
                f"Copy it from the hub's {self.hub}, or unset {VARIABLE} to read from there"
            )
        where = str(files[0] if len(files) == 1 else self.folder / name)
        builder = "parquet" if files[0].suffix == ".parquet" else "json"
        if not any(file.stat().st_size for file in files):
            return where, []
        try:
            # Streaming reads the files as they are; otherwise a copy goes to a cache, which may outlive a change.
            return where, list(load_dataset(builder, data_files=[*map(str, files)], split="train", streaming=True))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise TaskError(f"{where}: not readable as {builder}: {_first_line(error)}") from None


def rows_digest(tables: Mapping[str, Iterable[Row]]) -> str:
    """SHA-256 over tables' rows. The same for the same rows, from whatever file format or place they were read."""
    text = json.dumps({name: list(rows) for name, rows in tables.items()}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(folder: Path, name: str) -> list[Path]:
    for suffix in (".json", ".jsonl", ".parquet"):
        if (file := folder / f"{name}{suffix}").is_file():
            return [file]
    return sorted((folder / name).rglob("*.parquet"))


def _text(value: Any, where: str) -> str:
    if value is None:
        raise TaskError(f"{where}: missing")
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: text is expected, not {value!r}")
    return value


def _texts(value: Any, count: int, where: str) -> list[str]:
    if value is None:
        raise TaskError(f"{where}: missing")
    if not isinstance(value, list) or len(value) != count:
        raise TaskError(f"{where}: a list of {count} texts is expected, not {value!r}")
    return [_text(one, where) for one in value]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
