"""Parquet files of the board: checks one before it is read, and writes one unless a sound file is there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import schema
from leaderboard.board.schema import Role
from leaderboard.storage import FolderStorage, StorageError

MAGIC = b"PAR1"
"""First and last bytes of a Parquet file."""


class BoardError(Exception):
    """An operation of the board failed; the message says what to do next."""


DELETE = "delete it and run again; nothing else is lost"
UPGRADE = "upgrade regrade to read it"


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that readers leave out: the reason, and what to do about it."""

    path: Path
    reason: str
    advice: str = DELETE

    def __str__(self) -> str:
        return f"{self.path}: left out, {self.reason}. What to do: {self.advice}"


_examined: dict[tuple[str, Path, int, int], Broken | None] = {}
"""Results of checks by (table, path, size, mtime): files are immutable, so one check per process is enough."""


def problem(path: Path, table: str, *, thorough: bool = False) -> Broken | None:
    """What is wrong with a file; None if nothing is. Checks the footer, or with `thorough` every value.

    Raises:
        FileNotFoundError: there is no such file.
    """
    stat = path.stat()
    key = (table, path, stat.st_size, stat.st_mtime_ns)
    if key in _examined and not (thorough and _examined[key] is None):
        return _examined[key]
    broken = _examine(path, table, thorough)
    if broken is None or thorough:  # what a check of the footer finds may be temporary, such as a network failure
        _examined[key] = broken
    return broken


def _examine(path: Path, table: str, thorough: bool) -> Broken | None:
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
            file.seek(-min(len(MAGIC), path.stat().st_size), os.SEEK_END)
            if head != MAGIC or file.read() != MAGIC:
                return Broken(path, "it is cut short")
        actual = pq.read_metadata(path).schema.to_arrow_schema()
        if thorough:
            pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            return Broken(path, f"it cannot be opened ({error.strerror})", "see that it can be read")
        return Broken(path, f"it is damaged ({str(error).splitlines()[0]})")
    return _mismatch(path, actual, table)


def _mismatch(path: Path, actual: pa.Schema, table: str) -> Broken | None:
    expected, metadata = schema.TABLES[table], actual.metadata or {}
    version = metadata.get(b"schema_version", b"").decode(errors="replace")
    if metadata.get(b"table") != table.encode() or not version.isdecimal():
        return Broken(path, f"it is not a file of the table {table}")
    if int(version) > schema.VERSION:
        return Broken(path, f"its schema version {version} is newer than {schema.VERSION}", UPGRADE)
    if missing := [name for name in schema.columns(table, Role.KEY) if name not in actual.names]:
        return Broken(path, f"it lacks the key column {', '.join(missing)}")
    for field in actual:
        if field.name in expected.names and field.type != expected.field(field.name).type:
            return Broken(path, f"its column {field.name} is {field.type}, not {expected.field(field.name).type}")
    return None


def canonical(table: str, rows: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, str]:
    """The rows in canonical order, and the SHA-256 of their content.

    The content is their key and result columns. Nulls are left out, so a column that is added to the schema later does
    not change the digest.

    Raises:
        ValueError: a row does not fit the schema.
    """
    content = schema.to_arrow(table, [dict(row) for row in rows])
    content_rows = content.select(schema.columns(table, Role.KEY, Role.RESULT)).to_pylist()
    lines = [_line(row) for row in content_rows]
    order = sorted(range(len(lines)), key=lines.__getitem__)
    text = "\n".join(lines[index] for index in order)
    return content.take(order), hashlib.sha256(text.encode()).hexdigest()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if value is not None}, sort_keys=True)


def publish(content: pa.Table | Path, storage: FolderStorage, name: str) -> bool:
    """Writes a table, or the bytes of a Parquet file, under a name unless a sound file is there; true if it did.

    Args:
        name: TABLE/FILE.

    Raises:
        BoardError: the disk is full, or the file cannot be written for another reason. Nothing of it is left behind.
    """
    table, path = name.partition("/")[0], storage.path(name)

    def damaged() -> bool:
        try:
            broken = problem(path, table)
        except FileNotFoundError:  # deleted, as the message to its reader advised
            return True
        return broken is not None and broken.advice == DELETE

    try:
        return storage.put_if_absent(name, content if isinstance(content, Path) else _parquet(content), damaged)
    except StorageError as error:
        raise BoardError(str(error)) from error


def _parquet(content: pa.Table) -> memoryview:
    buffer = pa.BufferOutputStream()
    strings = [field.name for field in content.schema if field.type == pa.string()]
    pq.write_table(content, buffer, compression="zstd", use_dictionary=strings, write_page_checksum=True)
    return memoryview(buffer.getvalue())
