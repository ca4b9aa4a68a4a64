"""The board: a Parquet dataset with many concurrent writers. One directory per table, one immutable file per append."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from leaderboard.board import query, schema, views
from leaderboard.board.compact import Compacted, merge_small
from leaderboard.board.files import (
    NAME,
    BoardError,
    Broken,
    Sound,
    canonical,
    damage,
    examined,
    problem,
    publish,
    remember,
)
from leaderboard.board.query import FAILED, WRONG_QUERY
from leaderboard.board.schema import Role
from leaderboard.board.visible import visible
from leaderboard.storage import FolderStorage

__all__ = ["Appended", "Board", "BoardError", "Broken"]

ATTEMPTS = 3
"""Attempts at reading a file that is another one each time; then it is left out."""
MOST_LISTINGS = 100
"""Listings of a folder from which files go all the time; a file that is merged goes once."""

_Files = Mapping[str, Sequence[Sound]]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Appended:
    """The file of an append.

    Attributes:
        new: whether this append wrote it; else it existed before, and stays.
    """

    path: Path
    new: bool


def log_broken(broken: Broken) -> None:
    """Log what is left out, as a warning of `leaderboard`: a program that sets up no logging has it on stderr."""
    logging.getLogger("leaderboard").warning("%s", broken)


class Board:
    """A Parquet dataset with the tables of `leaderboard.board.schema`.

    Reading never fails because of what is in a file: a broken file, and a row that breaks a rule of
    `leaderboard.board.validity`, are left out.

    Args:
        path: directory of the board; made by the first `append`.
        tell: called once for everything that reading leaves out.
    """

    def __init__(self, path: str | os.PathLike[str], tell: Callable[[Broken], None] = log_broken) -> None:
        self.path = Path(path).absolute()
        self._storage = FolderStorage(self.path)
        self._tell = tell
        self._told: set[Broken] = set()
        self._judged: dict[str, tuple[frozenset[Sound], list[Broken], bool]] = {}

    def append(self, table: str, rows: Sequence[Mapping[str, Any]], name: str | None = None) -> Appended | None:
        """Adds rows as one file; None where there are no rows.

        Args:
            name: name of the file, without suffix. By default the digest of the rows' content (key and result columns,
                in any order of rows), so that the same rows are the same file, whichever process writes them and when.

        Raises:
            ValueError: a row does not fit the schema, or the name is not a file name.
            BoardError: the file cannot be written (the disk is full, ...); nothing of it is left behind.
        """
        if not rows:
            return None
        content, digest = canonical(table, rows)
        return self._publish(content, table, name or digest)

    def append_file(self, table: str, path: str | os.PathLike[str], name: str) -> Appended:
        """Adds an existing Parquet file of the table's schema, which will not change; linked if possible, else copied.

        Raises:
            ValueError: the name is not a file name.
            BoardError: the file is not one of this table, or cannot be written.
        """
        source = Path(path)
        if not source.exists():
            raise BoardError(f"{source}: no such file. What to do: write it before it is added to the board")
        if broken := problem(source, table):
            raise BoardError(f"{source}: not added to {table}, {broken.reason}. What to do: {broken.advice}")
        return self._publish(source, table, name)

    def read(
        self,
        table: str,
        where: views.Where | Sequence[views.Where] = (),
        names: Sequence[str] | None = None,
        most: int | None = None,
    ) -> pa.Table:
        """Rows of a table in the order of their keys, one row per key.

        Of several rows with one key, a finished one is preferred to a failed one, then the one written first, then the
        first by file name. Columns that a file lacks are null. Broken files and wrong rows are left out and told.

        Args:
            where: by column the value (None for null) or the list of values to keep; a row must match all of them.
                Several such mappings: all of one of them.
            names: columns of the result, by default all.
            most: rows that may match, those with one key counted each; by default any number.

        Raises:
            BoardError: no such column, the files cannot be read, or more rows match.
        """
        condition, values = views.condition(table, [where] if isinstance(where, Mapping) else where)
        wanted, keys = list(names or schema.columns(table)), ", ".join(schema.columns(table, Role.KEY))
        kind = pa.schema([schema.TABLES[table].field(name) for name in wanted], schema.TABLES[table].metadata)

        def rows(connection: duckdb.DuckDBPyConnection, files: _Files) -> pa.Table:
            views.create_views(connection, files, self._flawless(files))
            if most is not None:
                matching = f"SELECT count(*) FROM ({views.all_rows(table, files[table])}) {condition}"
                [(count,)] = connection.sql(matching, params=values).fetchall()
                if count > most:
                    raise BoardError(f"{self.path}: {count:,} rows of {table} match, and the most is {most:,}")
            text = f"SELECT {', '.join(wanted)} FROM {table} {condition} ORDER BY {keys}"
            return connection.sql(text, params=values).to_arrow_table()

        return self._reading([table], rows).cast(kind)

    def origins(self, table: str, column: str, value: str) -> list[str]:
        """Names of the files with the rows whose column has this value, in order.

        Raises:
            BoardError: the files cannot be read.
        """

        def found(connection: duckdb.DuckDBPyConnection, files: _Files) -> list[str]:
            rows = views.one_row_per_key(table, files[table], [column, "filename"])
            text = f"SELECT DISTINCT filename FROM ({rows}) WHERE {column} = ? ORDER BY 1"
            return [name for (name,) in connection.sql(text, params=[value]).fetchall()]

        return self._reading([table], found)

    def sql(self, text: str, limits: query.Limits = query.LIMITS) -> pa.Table:
        """The result of one SELECT over the views `trials`, `measurements` and `samples` (one row per key, as `read`).

        The query can read the board only: no other file, no network, no writing. It runs in a process of its own, which
        ends with it, at the latest when it has reached a limit.

        Args:
            limits: time, memory and threads that the query may take.

        Raises:
            BoardError: the query is not one SELECT, is wrong, or reached a limit; with what to do.
        """
        tables = [table for table in schema.TABLES if table in text.lower()]
        return self._reading(tables, lambda _, files: query.answer(self.path, text, files, limits))

    def result_rows(self, table: str) -> pa.Table:
        """Key and result columns in the order of the keys: bit for bit the same in two runs of the same trials."""
        return self.read(table).select(schema.columns(table, Role.KEY, Role.RESULT)).combine_chunks()

    def broken(self) -> list[Broken]:
        """Files and rows that reading leaves out, and why."""
        return [broken for table in schema.TABLES for broken in _retried(partial(self._found, table))[1]]

    def compact(self) -> list[Compacted]:
        """Merges the small files of each table into few; all that reading gives and leaves out stays the same.

        It may be killed at any instant, and run beside writers, readers and itself, on any machine.

        Raises:
            BoardError: a file cannot be written, read back or deleted. No row is lost, and none counts twice.
        """
        return [self._compacted(table) for table in schema.TABLES]

    def _compacted(self, table: str) -> Compacted:
        def once(unsteady: set[Path]) -> Compacted:
            files, left_out = self._told_of(table, unsteady)
            with self._failures({table: files}):
                stays = merge_small(self._storage, table, files, {broken.path for broken in left_out})
            return Compacted(table, before, len(self._files(table)), tuple(stays))

        before = len(self._files(table))
        return _retried(once)

    def _publish(self, content: pa.Table | Path, table: str, name: str) -> Appended:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a file name. Allowed: letters, digits and _.@=+-, 200 at most")
        file = f"{table}/{name}.parquet"
        return Appended(self._storage.path(file), publish(content, self._storage, file))

    def _files(self, table: str) -> list[Sound | Broken]:
        if not _is_text(self.path):
            raise BoardError(visible(f"{self.path}: this name is no text in UTF-8. What to do: rename the folder"))
        gone: Counter[Path] = Counter()
        while True:
            try:
                names = self._listed(table)
            except OSError as error:
                folder = self._storage.path(table)
                return [Broken(folder, f"it cannot be listed ({error.strerror})", "see that it can be read")]
            paths = [self._storage.path(name) for name in names]
            named = [path for path in paths if NAME.fullmatch(path.stem)]
            present = list(_present(named, table))
            missing = {*named} - {file.path for file in present}
            if all(gone[path] >= ATTEMPTS for path in missing):
                return [*map(_misnamed, sorted({*paths} - {*named})), *present]
            gone.update(missing)  # their rows may be in a file that was not there yet when the folder was listed

    def _listed(self, table: str) -> Sequence[str]:
        """Names of a table's files.

        Listing a folder takes time, in which a file may come and those that it replaces may go, unseen all of them. So
        it is listed until nothing has gone since the time before: what replaced it has been there since then.

        Raises:
            OSError: the folder cannot be listed.
        """
        before = self._storage.list(f"{table}/", ".parquet")
        for _ in range(MOST_LISTINGS):
            names = self._storage.list(f"{table}/", ".parquet")
            if {*before} <= {*names}:
                break
            before = names
        return names

    def _reading(self, tables: Sequence[str], read: Callable[[duckdb.DuckDBPyConnection, _Files], _T]) -> _T:
        """What a function reads from the sound files of tables. It is called again without the files that fail."""

        def once(unsteady: set[Path]) -> _T:
            files = {table: self._told_of(table, unsteady)[0] for table in tables}
            with self._failures(files), views.connected() as connection:
                found = read(connection, files)
            if gone := [
                file.path for table in self._flawless(files) for file in files[table] if not _is_there(file, table)
            ]:
                raise _Changed(gone)  # its rows were judged before they were read
            return found

        return _retried(once)

    @contextmanager
    def _failures(self, files: _Files) -> Iterator[None]:
        """Context in which an error of reading these files is a `_Changed` if a file is to blame, else a BoardError."""
        try:
            yield
        except WRONG_QUERY as error:
            raise self._failed(error) from None
        except FAILED as error:
            if changed := _changed(files):
                raise _Changed(changed) from None
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> BoardError:
        text = visible(str(error), keep="\n")
        return BoardError(f"{self.path}: {text}")

    def _told_of(self, table: str, unsteady: set[Path]) -> tuple[list[Sound], list[Broken]]:
        """As `_found`; what is left out is told."""
        files, left_out = self._found(table, unsteady)
        for broken in left_out:
            if broken not in self._told:
                self._told.add(broken)
                self._tell(broken)
        return files, left_out

    def _found(self, table: str, unsteady: set[Path]) -> tuple[list[Sound], list[Broken]]:
        """The files to be read, and what is left out: files and rows."""
        files = [_unsteady(file) if file.path in unsteady else file for file in self._files(table)]
        sound = [file for file in files if isinstance(file, Sound)]
        wrong = self._judge(table, sound)
        whole = {broken.path for broken in wrong if broken.rows is None}
        left_out = [*(file for file in files if isinstance(file, Broken)), *wrong]
        return [file for file in sound if file.path not in whole], left_out

    def _judge(self, table: str, files: Sequence[Sound]) -> list[Broken]:
        """What the rows of files are left out for; the last answer is kept, since files are immutable."""
        key = frozenset(files)
        if table not in self._judged or self._judged[table][0] != key:
            self._judged[table] = key, *_judged(table, files)
        return self._judged[table][1]

    def _flawless(self, files: _Files) -> list[str]:
        """The tables of which every row of these files counts, as `_judge` has found."""
        judged = {table: self._judged[table] for table in files if table in self._judged}
        return [table for table, (key, _, whole) in judged.items() if whole and key == frozenset(files[table])]


def _judged(table: str, files: Sequence[Sound]) -> tuple[list[Broken], bool]:
    """Findings about rows, and whether the files are flawless; a file that cannot be read is remembered as damaged."""
    try:
        with views.connected() as connection:
            if views.flawless(connection, table, files):
                return [], True
            return views.left_out(connection, table, files), False
    except (duckdb.ParserException, duckdb.CatalogException):
        raise  # no fault of a file
    except FAILED as error:
        if gone := [file.path for file in files if not _is_there(file, table)]:
            raise _Changed(gone) from None
        if len(files) == 1:
            return [remember(files[0], table, damage(error))], False
    alone = {file: _judged(table, [file])[0] for file in files}
    sound = [file for file, found in alone.items() if all(broken.rows is not None for broken in found)]
    if len(sound) == len(files):
        return [broken for found in alone.values() for broken in found], False
    damaged = [broken for file, found in alone.items() if file not in sound for broken in found]
    return [*damaged, *_judged(table, sound)[0]], False


def _unsteady(file: Sound | Broken) -> Broken:
    return Broken(file.path, "it changes while it is read", "read again when its writer has ended")


def _is_text(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _misnamed(path: Path) -> Broken:
    return Broken(path, "its name has other characters than letters, digits and _.@=+-", "rename it")


def _is_there(file: Sound, table: str) -> bool:
    """Whether a file is still the one that was examined."""
    return next(_present([file.path], table), None) == file


class _Changed(Exception):
    """Files that looked sound are gone, or other ones, or cannot be read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self.paths = paths


def _retried(work: Callable[[set[Path]], _T]) -> _T:
    """What a function returns. It is called again while files change, with those that do so each time."""
    changes: Counter[Path] = Counter()
    while True:
        try:
            return work({path for path, times in changes.items() if times >= ATTEMPTS})
        except _Changed as error:
            changes.update(error.paths)


def _changed(files: _Files) -> list[Path]:
    """Files that looked sound and are gone or other ones; if there are none, those that cannot be read."""
    both = [(table, file) for table, sound in files.items() for file in sound]
    gone = [file.path for table, file in both if not _is_there(file, table)]
    return gone or [file.path for table, file in both if _damaged(table, file)]


def _damaged(table: str, file: Sound) -> bool:
    """Whether a file cannot be read, which is then remembered."""
    try:
        with views.connected() as connection:
            for _ in connection.sql(views.one_row_per_key(table, [file])).to_arrow_reader():
                pass
    except FAILED as error:
        remember(file, table, damage(error))
        return True
    return False


def _present(paths: Sequence[Path], table: str) -> Iterator[Sound | Broken]:
    """Files that were not deleted since they were listed."""
    for path in paths:
        try:
            yield examined(path, table)
        except FileNotFoundError:
            continue
