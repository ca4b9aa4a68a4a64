"""The tables as DuckDB sees them: views over files, without the rows that break a rule, one row per key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa

from leaderboard.board import schema
from leaderboard.board.files import SPLIT, BoardError, Broken, Sound
from leaderboard.board.schema import Role, Status
from leaderboard.board.validity import first_broken, rules
from leaderboard.board.visible import shortened

Value = str | int | float | None
Where = Mapping[str, Value | Collection[Value]]
"""By column the value of the rows that are meant (None for null), or a list of values."""

TEXT = 256 << 20
"""Most bytes of text in the rows of a file, except of samples: ranking has all of them in memory."""

_CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a query must not see the variables of this process
}
"""Settings of every connection."""

CORRECT = "correct them or take them out of the file, whose other rows are read"
CHOOSE = "take one of the two out of the board"

_RANKED = {
    "trials": ("entry", "optimizer", "task", "task_version", "data", "seed", "anchors", "anchor_ids"),
    "measurements": ("value", "stderr", "n", "headline", "chance", "task", "anchors"),
    "items": ("item", "value"),
}
"""Columns in which two rows with one key must agree, or one of them is said to be left out."""

_LENGTHS = {"VARCHAR": "strlen({})", "VARCHAR[]": "list_sum(list_transform({}, lambda x: strlen(x)))"}
"""Bytes of text in a column, by its type."""


@contextmanager
def connected(**settings: str | int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to no database, with these settings."""
    with closing(duckdb.connect(config=_CLOSED | settings)) as connection:
        connection.execute("SET enable_progress_bar = false")  # it would be among what the command prints
        # Rules must look at the values: smallest and largest ones in a file's footer leave out NaN, and may be lies.
        connection.execute("SET disabled_optimizers = 'statistics_propagation'")
        yield connection


def create_views(
    connection: duckdb.DuckDBPyConnection, files: Mapping[str, Sequence[Sound]], flawless: Collection[str] = ()
) -> None:
    """A view per table, over these files.

    Args:
        flawless: tables whose files are so, by the function of that name: all their rows are in the view.
    """
    for table, sound in files.items():
        rows = all_rows(table, sound) if table in flawless else one_row_per_key(table, sound)
        connection.execute(f"CREATE VIEW {table} AS {rows}")


def one_row_per_key(table: str, files: Sequence[Sound], names: Sequence[str] = ()) -> str:
    """The rows of files that break no rule, one per key: a query for these columns, by default those of the schema."""
    keys = ", ".join(schema.columns(table, Role.KEY))
    return (
        f"SELECT {', '.join(names or schema.columns(table))} FROM ({all_rows(table, files)})"
        f" WHERE ({first_broken(table)}) IS NULL"
        f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {', '.join(order(table))}) = 1"
    )


def flawless(connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[Sound]) -> bool:
    """Whether nothing is to be left out: no row breaks a rule, no file has too much text, and no key is there twice.

    Nearly every board is so, and to see it takes a third of the time of `left_out`. Samples may be too many to look at.
    """
    if table not in _RANKED:
        return False
    if not files:
        return True
    size = " + ".join(f"coalesce(sum({length}), 0)" for length in _lengths(table))
    broken = " OR ".join(f"({rule.condition})" for rule in rules(table))
    flawed = connection.sql(
        f"SELECT filename FROM ({all_rows(table, files)}) GROUP BY filename"
        f" HAVING count(*) FILTER ({broken}) > 0 OR {size} > {TEXT}"
    ).fetchall()
    if flawed:
        return False
    key = f"{_hash(schema.columns(table, Role.KEY))} AS key"
    keys = connection.sql(f"SELECT key FROM ({all_rows(table, files, key)})").fetchnumpy()["key"]
    keys.sort()
    return bool((keys[1:] != keys[:-1]).all())


def left_out(connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[Sound]) -> list[Broken]:
    """What the rows of files are left out for: findings per file, about its rows or about all of it."""
    if not files:
        return []
    key, said = map(_hash, (schema.columns(table, Role.KEY), content(table)))
    size = " + ".join(f"coalesce({length}, 0)" for length in _lengths(table)) if table in _RANKED else "0"
    first = schema.columns(table, Role.KEY)[0]
    places = {f"o{number}": part for number, part in enumerate(order(table))}
    kind = "TABLE" if table in _RANKED else "VIEW"  # of samples there may be too many to keep
    judged = ["place", "size", "wrong", "name", "key", "content", *places]
    expressions = (
        f"filename, file_row_number AS place, {size} AS size, {first_broken(table)} AS wrong,"
        f" CASE WHEN strlen({first}) < 1000 THEN {first} END AS name,"
        # hashed only where the rules hold: a text may be huge
        f" CASE WHEN wrong IS NULL THEN {key} END AS key, CASE WHEN wrong IS NULL THEN {said} END AS content,"
        f" {', '.join(f'{part} AS {name}' for name, part in places.items())}"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP {kind} judged AS SELECT filename, {', '.join(judged)}"
        f" FROM ({all_rows(table, files, expressions)})"
    )
    return [*_wrong(connection, table, first), *_contradicted(connection, table, first, list(places))]


def _lengths(table: str) -> list[str]:
    """The bytes of text in each column that has any, as expressions."""
    return [_LENGTHS[kind].format(name) for name, kind in types(table).items() if kind in _LENGTHS]


def _hash(names: Sequence[str]) -> str:
    return f"hash({', '.join(names)})"


def _wrong(connection: duckdb.DuckDBPyConnection, table: str, first: str) -> list[Broken]:
    """Rows that break a rule, and files with too much text."""
    found = connection.sql(
        "SELECT filename, count(wrong), arg_min(wrong, place) FILTER (wrong IS NOT NULL),"
        " min(place) FILTER (wrong IS NOT NULL), arg_min(name, place) FILTER (wrong IS NOT NULL), sum(size) AS text"
        f" FROM judged GROUP BY filename HAVING count(wrong) > 0 OR text > {TEXT} ORDER BY filename"
    ).fetchall()
    return [
        Broken(Path(path), f"its rows have {text:,} bytes of text, and the most is {TEXT:,}", SPLIT)
        if text > TEXT
        else _rows(path, count, place, first, name, rules(table)[rule].reason, CORRECT)
        for path, count, rule, place, name, text in found
    ]


def _contradicted(connection: duckdb.DuckDBPyConnection, table: str, first: str, order: Sequence[str]) -> list[Broken]:
    """Rows that say something else than a row with the same key that counts.

    A failed row beside a finished one is no contradiction: the trial was run again.
    """
    if table not in _RANKED:
        return []
    finished = f"NOT {order[0]}" if "status" in schema.TABLES[table].names else "true"
    found = connection.sql(
        "WITH repeated AS (SELECT key FROM judged WHERE key IS NOT NULL GROUP BY key HAVING count(*) > 1),"
        " compared AS (SELECT *, content <> first_value(content) OVER same AS differs FROM judged"
        f" WHERE key IN (FROM repeated) WINDOW same AS (PARTITION BY key ORDER BY {', '.join(order)}))"
        " SELECT filename, count(*), min(place), arg_min(name, place)"
        f" FROM compared WHERE differs AND {finished} GROUP BY filename ORDER BY filename"
    ).fetchall()
    reason = "another row has the same key and other content, and was written first"
    return [_rows(path, count, place, first, name, reason, CHOOSE) for path, count, place, name in found]


def _rows(path: str, count: int, place: int, first: str, name: str | None, reason: str, advice: str) -> Broken:
    which = f"{'it is' if count == 1 else 'the first is'} row {place}"
    who = f" ({first} {shortened(name, 70)})" if name else ""
    return Broken(Path(path), f"{which}{who}: {reason}", advice, count)


def all_rows(table: str, files: Sequence[Sound], expressions: str = "filename, file_row_number") -> str:
    """All rows of files: a query per set of columns that files have, with null for those that they lack.

    Args:
        expressions: computed beside the columns where the rows are read, which copies no text: DuckDB copies the texts
            of a column, also of one that repeats a single text a million times, once they stand beside a null.
    """
    groups: defaultdict[tuple[str, ...], list[Path]] = defaultdict(list)
    for file in files:
        groups[file.columns].append(file.path)
    parts = [f"SELECT {_columns(table, ())}, '' AS filename, 0 AS file_row_number WHERE false"]
    for present, paths in groups.items():
        found = f"read_parquet([{', '.join(map(_pattern, paths))}], hive_partitioning = false, filename = true,"
        parts.append(f"SELECT {_columns(table, present)}, {expressions} FROM {found} file_row_number = true)")
    return " UNION ALL BY NAME ".join(parts[1:] or parts)


def _columns(table: str, present: Sequence[str]) -> str:
    """A table's columns, with null for those that are not present."""
    return ", ".join(
        name if name in present else f"CAST(NULL AS {kind}) AS {name}" for name, kind in types(table).items()
    )


@cache
def types(table: str) -> dict[str, str]:
    """DuckDB's type of each column."""
    return {column.name: _type(column.type) for column in schema.TABLES[table]}


_TYPES = {pa.bool_(): "BOOLEAN", pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.string(): "VARCHAR"}


def _type(kind: pa.DataType) -> str:
    # DuckDB would tell of an empty table, and import pandas for it, which takes longer than reading a small board.
    if pa.types.is_list(kind):
        return f"{_type(kind.value_type)}[]"
    if pa.types.is_map(kind):
        return f"MAP({_type(kind.key_type)}, {_type(kind.item_type)})"
    return _TYPES[kind]


def content(table: str) -> Sequence[str]:
    """Columns in which rows with one key must agree."""
    return _RANKED.get(table, schema.columns(table, Role.KEY))


def order(table: str) -> list[str]:
    """Which of several rows with one key counts: a finished one, the one written first, the first by file name."""
    by = ["filename", "file_row_number"]
    if "written_at" in schema.TABLES[table].names:
        by.insert(0, "CASE WHEN written_at LIKE '20__-__-__T%' THEN written_at ELSE '~' END")
    if "status" in schema.TABLES[table].names:
        by.insert(0, f"(status IS NOT DISTINCT FROM '{Status.FAILED}')")
    return by


def condition(table: str, where: Sequence[Where]) -> tuple[str, list[object]]:
    """A WHERE clause and its parameters; only names of the schema are inserted, values are passed as parameters.

    Raises:
        BoardError: no such column.
    """
    choices: list[str] = []
    values: list[object] = []
    for mapping in where:
        terms = ["true"]
        for name, value in mapping.items():
            if name not in schema.TABLES[table].names:
                raise BoardError(f"{table} has no column {name!r}. It has: {', '.join(schema.columns(table))}")
            if value is None:
                terms.append(f"{name} IS NULL")
            elif isinstance(value, str | int | float):
                terms.append(f"{name} = ?")
                values.append(value)
            else:
                terms.append(f"{name} IN (SELECT unnest(?))")  # hashed once; `list_contains` looks through all of it
                values.append(list(value))
        choices.append(" AND ".join(terms))
    return (f"WHERE {' OR '.join(choices)}" if choices else ""), values


def _pattern(path: Path) -> str:
    """A path in a query, where the wildcards of a folder's name stand for themselves."""
    literal = "".join(f"[{character}]" if character in "*?[" else character for character in str(path))
    return "'" + literal.replace("'", "''") + "'"
