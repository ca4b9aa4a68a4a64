"""The board: a Parquet dataset with many concurrent writers. One directory per table, one immutable file per append."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from leaderboard.board import schema
from leaderboard.board.files import BoardError, Broken, canonical, problem, publish
from leaderboard.board.schema import Role, Status
from leaderboard.storage import FolderStorage

__all__ = ["Appended", "Board", "BoardError", "BoardWarning", "Broken"]

ATTEMPTS = 3
"""Attempts at a query: a file that is damaged inside, or was deleted meanwhile, shows only while reading."""

_NAME = re.compile(r"\w[\w.@=+-]{0,199}", re.ASCII)
_WRONG_QUERY = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.PermissionException)
_CLOSED = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a query must not see the variables of this process
}


class BoardWarning(UserWarning):
    """A broken file of the board was left out while reading."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The file of an append.

    Attributes:
        new: whether this append wrote it; else it existed before, and stays.
    """

    path: Path
    new: bool


class Board:
    """A Parquet dataset with the tables of `leaderboard.board.schema`.

    Args:
        path: directory of the board; made by the first `append`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._storage = FolderStorage(self.path)

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

    def read(self, table: str, where: Mapping[str, object] | None = None) -> pa.Table:
        """Rows of a table in the order of their keys, one row per key.

        Of several rows with one key, a finished one is preferred to a failed one, then the one written first, then the
        first by file name. Columns that a file lacks are null. A broken file is left out with a `BoardWarning`.

        Args:
            where: by column the value (None for null) or the list of values to keep; a row must match all of them.

        Raises:
            BoardError: no such column, or the files cannot be read.
        """
        condition, values = _condition(table, where or {})
        names, keys = ", ".join(schema.columns(table)), ", ".join(schema.columns(table, Role.KEY))
        table_rows = self._query(f"SELECT {names} FROM {table} {condition} ORDER BY {keys}", [table], values)
        return table_rows.cast(schema.TABLES[table])

    def sql(self, query: str) -> pa.Table:
        """The result of one SELECT over the views `trials`, `measurements` and `samples` (one row per key, as `read`).

        The query can read the board only: no other file, no network, no writing.

        Raises:
            BoardError: the query is not one SELECT, or is wrong; with DuckDB's message.
        """
        return self._query(query, list(schema.TABLES))

    def result_rows(self, table: str) -> pa.Table:
        """Key and result columns in the order of the keys: bit for bit the same in two runs of the same trials."""
        return self.read(table).select(schema.columns(table, Role.KEY, Role.RESULT)).combine_chunks()

    def broken(self) -> list[Broken]:
        """Files that reading leaves out, and why."""
        return [broken_file for table in schema.TABLES for _, broken_file in self._files(table) if broken_file]

    def _publish(self, content: pa.Table | Path, table: str, name: str) -> Appended:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a file name. Allowed: letters, digits and _.@=+-, 200 at most")
        file = f"{table}/{name}.parquet"
        return Appended(self._storage.path(file), publish(content, self._storage, file))

    def _files(self, table: str) -> Iterator[tuple[Path, Broken | None]]:
        for path in map(self._storage.path, self._storage.list(f"{table}/", ".parquet")):
            with suppress(FileNotFoundError):  # deleted since it was listed
                yield path, problem(path, table)

    def _sound(self, table: str) -> list[Path]:
        files = list(self._files(table))
        for _, broken in files:
            if broken:
                warnings.warn(str(broken), BoardWarning, stacklevel=4)  # the caller of `read` or `sql`
        return [path for path, broken in files if not broken]

    def _query(self, query: str, tables: Sequence[str], values: Sequence[object] = ()) -> pa.Table:
        for attempt in range(1, ATTEMPTS + 1):
            files = dict(zip(tables, map(self._sound, tables), strict=True))
            try:
                with self._views(files) as connection:
                    _refuse_all_but_select(connection.extract_statements(query))
                    return connection.sql(query, params=list(values)).to_arrow_table()
            except duckdb.Error as error:
                if attempt == ATTEMPTS or isinstance(error, _WRONG_QUERY) or not _changed(files):
                    raise BoardError(f"{self.path}: {error}") from error
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _views(self, files: Mapping[str, Sequence[Path]]) -> Iterator[duckdb.DuckDBPyConnection]:
        with closing(duckdb.connect(config=_CLOSED)) as connection:
            for table, paths in files.items():
                empty = connection.from_arrow(schema.TABLES[table].empty_table())
                types = dict(zip(empty.columns, map(str, empty.types), strict=True))
                connection.execute(f"CREATE VIEW {table} AS {_one_row_per_key(table, types, paths)}")
            connection.execute(f"SET allowed_directories = [{_quoted(self.path)}]")
            connection.execute("SET enable_external_access = false; SET lock_configuration = true")
            yield connection


def _one_row_per_key(table: str, types: Mapping[str, str], paths: Sequence[Path]) -> str:
    # A source without rows that has the type of every column: columns that the files lack are read as null.
    columns = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in types.items())
    source = f"SELECT {columns}, '' AS filename, 0 AS file_row_number WHERE false"
    if paths:
        files = f"[{', '.join(map(_quoted, paths))}]"
        source += (
            f" UNION ALL BY NAME SELECT * FROM read_parquet({files}, union_by_name = true, filename = true,"
            " file_row_number = true)"
        )
    order = ["filename", "file_row_number"]
    if "written_at" in types:
        order.insert(0, "written_at NULLS LAST")
    if "status" in types:
        order.insert(0, f"(status IS NOT DISTINCT FROM '{Status.FAILED}')")
    keys = ", ".join(schema.columns(table, Role.KEY))
    return (
        f"SELECT {', '.join(types)} FROM ({source})"
        f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {', '.join(order)}) = 1"
    )


def _condition(table: str, where: Mapping[str, object]) -> tuple[str, list[object]]:
    """A WHERE clause and its parameters; only names of the schema are inserted, values are passed as parameters."""
    terms: list[str] = []
    values: list[object] = []
    for name, value in where.items():
        if name not in schema.TABLES[table].names:
            raise BoardError(f"{table} has no column {name!r}. It has: {', '.join(schema.columns(table))}")
        if value is None:
            terms.append(f"{name} IS NULL")
        elif isinstance(value, str | int | float):
            terms.append(f"{name} = ?")
            values.append(value)
        else:
            terms.append(f"list_contains(?, {name})")
            values.append(list(value))
    return ("WHERE " + " AND ".join(terms) if terms else ""), values


def _refuse_all_but_select(statements: Sequence[duckdb.Statement]) -> None:
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise BoardError("The board answers one SELECT at a time over trials, measurements and samples")


def _changed(files: Mapping[str, Sequence[Path]]) -> bool:
    """Whether a file that looked sound was deleted, or is damaged inside (which is then remembered)."""
    changed = [
        not path.exists() or problem(path, table, thorough=True) for table, paths in files.items() for path in paths
    ]
    return any(changed)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
