"""Merges small files of the board into few, so that reading costs what the rows cost and not what the files do.

All that reading gives and leaves out stays the same. Which of several rows with one key counts may depend on the names
of their files (`views.order`), so a file is merged only if no name decides: each of its rows either has its key for
itself, or the others are written later for certain, or failed, or say the same in every column. Files stay where they
are that have broken rows, or rows that others contradict (one of the two is to be taken out by hand), or columns or a
version that this schema lacks. A row that says the same as one that counts is written once.

The new file is written under a temporary name, checked, put under a name made of its bytes, and read back; only then
are the files that it replaces deleted. Killed before, they are all there; killed later, some of their rows are in two
files and equal. Two compactions write the same bytes under one name, or rows that are in two files and equal. The names
begin with `0+`, which is before every other name that the board allows: a row that comes later never counts before a
merged one that was written at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import schema, views
from leaderboard.board.files import BYTES, ROWS, BoardError, Sound, how_to_write, problem, publish
from leaderboard.board.schema import Role
from leaderboard.board.validity import first_broken
from leaderboard.board.visible import visible
from leaderboard.storage import FolderStorage, StorageError

PREFIX = "0+"
"""How names of merged files begin: before every other name, in the order that decides between equal rows."""
LARGEST = {table: min(most // 4, 1 << 30) for table, most in BYTES.items()}
"""Most bytes of a merged file, decompressed. A file of half of that is not merged again."""
MOST_ROWS = {table: most // 2 for table, most in ROWS.items()}
"""Most rows of a merged file. A file of half of that is not merged again."""
GROUP = 64 << 20
"""Bytes of rows that are in memory, and then written as one row group."""
GROUP_ROWS = 1 << 17
"""Most rows of a row group: DuckDB's own number."""
BATCH = 2048
"""Rows that are read at a time."""
AT_ONCE = {"trials": 1 << 20, "measurements": 1 << 20, "items": 1 << 12, "steps": 1 << 12, "samples": 64}
"""Trials or evaluations whose repeated rows are compared at a time: samples have long texts."""

COLUMNS = "it has columns that this version does not know"
VERSION = f"its schema version is not {schema.VERSION}"
LEFT_OUT = "rows of it are left out"
CONTESTED = "another file has rows with the same keys that say something else"


@dataclass(frozen=True, slots=True)
class Stays:
    """A file that is small and not merged."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return visible(f"{self.path}: not merged, {self.reason}. It counts as before")


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of a table.

    Attributes:
        before: number of files, broken ones included.
        stays: files that are small and not merged; of broken ones, only those of which some rows are read.
    """

    table: str
    before: int
    after: int
    stays: tuple[Stays, ...]

    def as_json(self) -> dict[str, Any]:
        stays = [{"file": str(one.path), "reason": one.reason} for one in self.stays]
        return {"table": self.table, "before": self.before, "after": self.after, "stays": stays}


class _Small(NamedTuple):
    file: Sound
    rows: int
    size: int


@dataclass(slots=True)
class _Repeated:
    """Rows whose key is in several files.

    Attributes:
        contested: files with a row that would count, or not, by the name of its file.
        again: by a file and the file with the row that counts, places of rows that say the same.
    """

    contested: set[str] = field(default_factory=set)
    again: dict[tuple[str, str], list[int]] = field(default_factory=dict)


class _Sum(NamedTuple):
    """Number of rows and the sum of their hashes, whatever their order."""

    rows: int
    hashes: int


def merge_small(storage: FolderStorage, table: str, files: Sequence[Sound], wrong: Collection[Path]) -> list[Stays]:
    """Merges small files of a table, and returns those that stay.

    Args:
        files: all files that are read.
        wrong: those of which rows are left out.

    Raises:
        BoardError: a file cannot be written, read back or deleted.
        duckdb.Error, OSError, pa.ArrowException: a file was deleted meanwhile, or is damaged.
    """
    small, stays = _small(table, files, wrong)
    if len(small) < 2:
        return stays
    repeated = _repeated(table, files)
    contested = [one for one in small if str(one.file.path) in repeated.contested]
    free = [one for one in small if str(one.file.path) not in repeated.contested]
    for batch in _batches(table, free):
        _merge(storage, table, batch, repeated.again)
    return [*stays, *(Stays(one.file.path, CONTESTED) for one in contested)]


def _small(table: str, files: Sequence[Sound], wrong: Collection[Path]) -> tuple[list[_Small], list[Stays]]:
    """Small files that may be merged, by name, and those that may not."""
    small: list[_Small] = []
    stays: list[Stays] = []
    for file in sorted(files, key=lambda file: str(file.path)):
        metadata = pq.read_metadata(file.path)
        size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        if metadata.num_rows > MOST_ROWS[table] // 2 or size > LARGEST[table] // 2:
            continue
        actual = metadata.schema.to_arrow_schema()
        if file.path in wrong:
            stays.append(Stays(file.path, LEFT_OUT))
        elif {*actual.names} - {*schema.TABLES[table].names}:
            stays.append(Stays(file.path, COLUMNS))
        elif actual.metadata[b"schema_version"] != schema.TABLES[table].metadata[b"schema_version"]:
            stays.append(Stays(file.path, VERSION))
        else:
            small.append(_Small(file, metadata.num_rows, size))
    return small, stays


def _batches(table: str, small: Sequence[_Small]) -> Iterator[list[Sound]]:
    """Files to be merged into one each, two at least."""
    batch: list[Sound] = []
    rows = size = 0
    for one in small:
        if rows + one.rows > MOST_ROWS[table] or size + one.size > LARGEST[table]:
            if len(batch) > 1:
                yield batch
            batch, rows, size = [], 0, 0
        batch.append(one.file)
        rows, size = rows + one.rows, size + one.size
    if len(batch) > 1:
        yield batch


def _repeated(table: str, files: Sequence[Sound]) -> _Repeated:
    """Rows whose key is in several files."""
    found, first = _Repeated(), schema.columns(table, Role.KEY)[0]
    source = views.all_rows(table, files)
    with views.connected() as connection:
        ids = connection.sql(
            f"SELECT {first} FROM (SELECT DISTINCT {first}, filename FROM ({source})) WHERE {first} IS NOT NULL"
            f" GROUP BY {first} HAVING count(*) > 1 ORDER BY {first}"
        ).fetchall()
        for start in range(0, len(ids), AT_ONCE[table]):
            some = [name for (name,) in ids[start : start + AT_ONCE[table]]]
            for name, best, contested, places in connection.execute(_comparing(table, source), [some]).fetchall():
                if contested:
                    found.contested.add(name)
                if places:
                    found.again.setdefault((name, best), []).extend(places)
    return found


def _comparing(table: str, source: str) -> str:
    """A query for the rows whose first key column is in a list: by file, and file of the row that counts."""
    keys, order = ", ".join(schema.columns(table, Role.KEY)), views.order(table)
    *certain, _, _ = order  # the others are the name of the file and the place in it
    result, rest = (
        f"row({', '.join(schema.columns(table, *roles))})" for roles in ((Role.RESULT,), (Role.RESULT, Role.OBSERVED))
    )
    content = f"row({', '.join(views.content(table))})"
    differs = "{0} IS DISTINCT FROM first_value({0}) OVER same"
    tied = " AND ".join(["true", *(f"NOT ({differs.format(part)})" for part in certain)])
    contradicts = f"NOT {certain[0]} AND {differs.format(content)}" if certain else "false"
    return (
        f"WITH compared AS (SELECT filename, file_row_number AS place, {keys},"
        f" first_value(filename) OVER same AS best, row_number() OVER same > 1 AS later,"
        f" {differs.format(result)} AS differs, ({tied} AND {differs.format(rest)}) OR ({contradicts}) AS contests"
        f" FROM ({source}) WHERE {schema.columns(table, Role.KEY)[0]} IN (SELECT unnest(?))"
        f" AND ({first_broken(table)}) IS NULL"
        f" WINDOW same AS (PARTITION BY {keys} ORDER BY {', '.join(order)}"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)),"
        f" judged AS (SELECT *, bool_or(contests) OVER (PARTITION BY {keys}) AS contested FROM compared)"
        " SELECT filename, best, bool_or(contested), list(place) FILTER (later AND NOT differs)"
        " FROM judged GROUP BY filename, best"
    )


def _merge(
    storage: FolderStorage, table: str, batch: Sequence[Sound], again: Mapping[tuple[str, str], Sequence[int]]
) -> None:
    """Merges files into one; into several where one would be larger than readers allow."""
    names = {str(file.path) for file in batch}
    left = {name: set[int]() for name in names}
    for (name, best), places in again.items():
        if name in names and best in names:
            left[name].update(places)
    try:
        with storage.draft(table) as draft:
            wanted = _write(draft, table, batch, left)
            allowed = _is_allowed(draft, table)
            if allowed:
                name = f"{table}/{PREFIX}{_digest(draft)}.parquet"
                publish(draft, storage, name)
    except StorageError as error:
        raise BoardError(str(error)) from error
    if allowed:
        _replace(storage, table, batch, storage.path(name), wanted)
    elif len(batch) > 2:
        half = len(batch) // 2
        _merge(storage, table, batch[:half], again)
        _merge(storage, table, batch[half:], again)


def _write(draft: Path, table: str, batch: Sequence[Sound], left: Mapping[str, Collection[int]]) -> _Sum:
    """Writes the rows of files without those at these places, in their order."""
    kind = schema.TABLES[table]
    expressions = f"filename, file_row_number, {_hashed(table)} AS hashed"
    total, hashes, waiting, size, rows = 0, 0, [], 0, 0
    with (
        views.connected(threads=1) as connection,  # rows stay in their order
        draft.open("wb") as file,
        pq.ParquetWriter(file, kind, **how_to_write(kind)) as writer,
    ):
        for read in _read(connection.sql(views.all_rows(table, batch, expressions))):
            some = pa.Table.from_batches([read.filter(_kept(read, left)) if any(left.values()) else read])
            total += some.num_rows
            hashes += int(np.sum(some["hashed"].to_numpy(), dtype=np.uint64))
            some = some.select(kind.names).cast(kind)
            waiting.append(some)
            size, rows = size + some.nbytes, rows + some.num_rows
            if size >= GROUP or rows >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting), GROUP_ROWS)
                waiting, size, rows = [], 0, 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting), GROUP_ROWS)
    return _Sum(total, hashes % (1 << 64))


def _read(rows: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    """The rows, some at a time. What cannot be read is DuckDB's error, not one of the file that is being written."""
    try:
        yield from rows.to_arrow_reader(BATCH)
    except OSError as error:  # pyarrow's, for a file that somebody else has merged meanwhile
        raise duckdb.IOException(str(error)) from None


def _kept(read: pa.RecordBatch, left: Mapping[str, Collection[int]]) -> pa.Array:
    names, places = (read[name].to_pylist() for name in ("filename", "file_row_number"))
    return pa.array([place not in left[name] for name, place in zip(names, places, strict=True)], pa.bool_())


def _hashed(table: str) -> str:
    return f"hash({', '.join(schema.columns(table))})"


def _is_allowed(draft: Path, table: str) -> bool:
    """Whether readers take a file whole: the limits of `files` and `views`."""
    if problem(draft, table):
        return False
    with views.connected() as connection:
        return not views.left_out(connection, table, [_sound(draft, table)])


def _sound(path: Path, table: str) -> Sound:
    return Sound(path, (), tuple(schema.TABLES[table].names))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(storage: FolderStorage, table: str, batch: Sequence[Sound], new: Path, wanted: _Sum) -> None:
    """Deletes files whose rows a new file has, once it is read back."""
    with views.connected() as connection:
        found = connection.sql(
            f"SELECT count(*), coalesce(sum({_hashed(table)}), 0) FROM ({views.all_rows(table, [_sound(new, table)])})"
        ).fetchall()
    if [(rows, int(hashes) % (1 << 64)) for rows, hashes in found] != [wanted]:
        what = "it has not the rows of the files that it is to replace, which are all there"
        raise BoardError(f"{new}: {what}. What to do: take it out of the folder and run again")
    refused: list[tuple[Path, OSError]] = []
    for file in batch:
        try:
            # Another file may have got the name since, if somebody else compacts too.
            if file.path != new and _content(file.path) == file.version[: len(_content(file.path))]:
                storage.delete(f"{table}/{file.path.name}")
        except FileNotFoundError:
            pass
        except OSError as error:
            refused.append((file.path, error))
    if refused:
        path, why = refused[0]
        what = f"{len(refused)} such files are not deleted" if len(refused) > 1 else "not deleted"
        advice = f"see that the folder can be changed and run again; its rows are in {new.name} too, and count once"
        raise BoardError(f"{path}: {what}, {why.strerror}. What to do: {advice}")


def _content(path: Path) -> tuple[int, ...]:
    """The beginning of a file's version, which stays when only links to it come and go."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
