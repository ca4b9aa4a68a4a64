"""Parquet files of the board: checks one before it is read, and writes one unless a sound file is there.

A file is judged by its kind and its footer, which costs no reading of its values, whatever their number. The
limits keep a reader's memory bounded; a file that this suite writes is far below them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import schema
from leaderboard.board.schema import Role
from leaderboard.board.visible import visible
from leaderboard.storage import FolderStorage, StorageError
from tasks.errors import RegradeError

MAGIC = b"PAR1"
"""First and last bytes of a Parquet file."""
NAME = re.compile(r"\w[\w.@=+-]{0,199}", re.ASCII)
"""Names of files, without suffix: no path, no wildcard, nothing that a terminal would obey."""
FOOTER = 16 << 20
"""Largest footer in bytes: a reader keeps all of it in memory."""
COLUMNS = 1000
"""Most columns: a file may have some that the schema lacks, and they cost time."""
ROWS = {"trials": 1_000_000, "measurements": 1_000_000, "samples": 100_000_000, "items": 1_000_000, "steps": 1_000_000}
"""Most rows of a file. A column of one value a million times takes a hundred bytes on disk."""
BYTES = {"trials": 1 << 30, "measurements": 1 << 30, "samples": 1 << 40, "items": 1 << 30, "steps": 1 << 30}
"""Most bytes of a file once decompressed, by its footer. Samples are read a batch at a time."""
VALUES = 20_000_000
"""Most values of a file of items or steps, whose rows are lists; the items of one attack are thousands."""

READERS_OWN = ("filename", "file_row_number")
"""Columns that readers add to the rows of a file."""


class BoardError(RegradeError):
    """An operation of the board failed; the message says what to do next."""


DELETE = "delete it and run again; nothing else is lost"
UPGRADE = "upgrade regrade to read it"
TAKE_AWAY = "take it out of the folder"
SPLIT = "write it in several files, or delete it"


@dataclass(frozen=True, slots=True)
class Broken:
    """What readers leave out: the reason, and what to do about it.

    Attributes:
        rows: number of rows of the file; None for all of the file.
    """

    path: Path
    reason: str
    advice: str = DELETE
    rows: int | None = None

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"{self.rows} row{'s' * (self.rows != 1)} "
        return visible(f"{self.path}: {rows}left out, {self.reason}. What to do: {self.advice}")


@dataclass(frozen=True, slots=True)
class Sound:
    """A file that looks sound.

    Attributes:
        version: changes when the file does.
        columns: those of the schema that it has.
    """

    path: Path
    version: tuple[int, ...]
    columns: tuple[str, ...]


_examined: dict[tuple[str, Path, tuple[int, ...]], Sound | Broken] = {}
"""Results of checks: files are immutable, so one check per version and process is enough."""


def problem(path: Path, table: str) -> Broken | None:
    """What is wrong with a file; None if nothing is.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = examined(path, table)
    return found if isinstance(found, Broken) else None


def examined(path: Path, table: str) -> Sound | Broken:
    """A file, checked by its name, kind and footer.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return Broken(path, "it is a link to nothing", TAKE_AWAY)
        raise
    except OSError as error:
        return _unreadable(path, error)
    key = (table, path, _version(status))
    if key in _examined:
        return _examined[key]
    found = _examine(path, table, status)
    if isinstance(found, Sound):  # what else is found may be temporary, such as a network failure
        _examined[key] = found
    return found


def remember(file: Sound, table: str, reason: str) -> Broken:
    """Keeps in mind that a file that looked sound cannot be read."""
    broken = Broken(file.path, reason)
    _examined[table, file.path, file.version] = broken
    return broken


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _examine(path: Path, table: str, status: os.stat_result) -> Sound | Broken:
    if not stat.S_ISREG(status.st_mode):
        return Broken(path, "it is no regular file but a folder, a pipe or the like", TAKE_AWAY)
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
            file.seek(-min(len(MAGIC) + 4, status.st_size), os.SEEK_END)
            size, tail = int.from_bytes(file.read(4), "little"), file.read()
            if head != MAGIC or tail != MAGIC:
                return Broken(path, "it is cut short")
            if size > FOOTER:
                return Broken(path, f"its footer has {size:,} bytes, and the most is {FOOTER:,}")
        metadata = pq.read_metadata(path)
        return _too_large(path, metadata, table) or _fitting(path, metadata.schema.to_arrow_schema(), table, status)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        return _unreadable(path, error)


def _unreadable(path: Path, error: Exception) -> Broken:
    if isinstance(error, OSError) and error.errno:
        return Broken(path, f"it cannot be opened ({error.strerror})", "see that it can be read")
    return Broken(path, damage(error))


def damage(error: Exception) -> str:
    """That a file is damaged, with the first line of a reader's message."""
    return f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0][:300]})"


def _too_large(path: Path, metadata: pq.FileMetaData, table: str) -> Broken | None:
    if metadata.num_columns > COLUMNS:
        return Broken(path, f"it has {metadata.num_columns:,} columns, and the most is {COLUMNS:,}")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if rows > ROWS[table]:
        return Broken(path, f"it has {rows:,} rows, and the most is {ROWS[table]:,}", SPLIT)
    size = sum(group.total_byte_size for group in groups)
    if size > BYTES[table]:
        return Broken(path, f"it has {size:,} bytes decompressed, and the most is {BYTES[table]:,}", SPLIT)
    values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if table in ("items", "steps") and values > VALUES:
        return Broken(path, f"it has {values:,} values, and the most is {VALUES:,}", SPLIT)
    return None


def _fitting(path: Path, actual: pa.Schema, table: str, status: os.stat_result) -> Sound | Broken:
    expected, metadata = schema.TABLES[table], actual.metadata or {}
    version = metadata.get(b"schema_version", b"")[:9].decode(errors="replace")
    if metadata.get(b"table") != table.encode() or not version.isdecimal():
        return Broken(path, f"it is not a file of the table {table}")
    if int(version) > schema.VERSION:
        return Broken(path, f"its schema version {version} is newer than {schema.VERSION}", UPGRADE)
    if actual.equals(expected):
        return Sound(path, _version(status), tuple(expected.names))
    return _mismatch(path, actual, table) or Sound(
        path, _version(status), tuple(sorted({*expected.names} & {*actual.names}))
    )


def _mismatch(path: Path, actual: pa.Schema, table: str) -> Broken | None:
    expected = {field.name: field.type for field in schema.TABLES[table]}
    if missing := [name for name in schema.columns(table, Role.KEY) if name not in actual.names]:
        return Broken(path, f"it lacks the key column {', '.join(missing)}")
    seen: set[str] = set()
    for field in actual:
        name = field.name.lower()  # queries do not tell upper from lower case
        if name in READERS_OWN or (name in expected and (name in seen or name != field.name)):
            return Broken(path, f"its column {field.name[:50]} would be taken for another")
        if name in expected and field.type != expected[name]:
            return Broken(path, f"its column {name} is {str(field.type)[:50]}, not {expected[name]}")
        seen.add(name)
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
    pq.write_table(content, buffer, **how_to_write(content.schema))
    return memoryview(buffer.getvalue())


def how_to_write(content: pa.Schema) -> dict[str, Any]:
    """Options of pyarrow's writer for the board's files."""
    strings = [field.name for field in content if field.type == pa.string()]
    strings += [f"{field.name}.list.element" for field in content if field.type == pa.list_(pa.string())]
    return {"compression": "zstd", "use_dictionary": strings, "write_page_checksum": True}
