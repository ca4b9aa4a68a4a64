"""The tables as DuckDB sees them: views over files, without the rows that break a rule, one row per key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from leaderboard.board import schema
from leaderboard.board.files import SPLIT, Broken, Sound
from leaderboard.board.schema import Role, Status
from leaderboard.board.validity import first_broken, rules
from leaderboard.board.visible import shortened

TEXT = 256 << 20
"""Most bytes of text in the rows of a file, of trials or measurements: ranking has all of them in memory."""

CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a query must not see the variables of this process
}
"""Settings of every connection."""

CORRECT = "correct them or take them out of the file, whose other rows are read"
CHOOSE = "take one of the two out of the board"

_RANKED = {
    "trials": ("entry", "task", "task_version", "data", "seed", "anchors", "anchor_ids"),
    "measurements": ("value", "stderr", "n", "headline", "chance", "task", "anchors"),
}
"""Columns in which two rows with one key must agree, or one of them is said to be left out."""


def create_views(connection: duckdb.DuckDBPyConnection, files: Mapping[str, Sequence[Sound]]) -> None:
    """A view per table, over these files."""
    for table, sound in files.items():
        connection.execute(f"CREATE VIEW {table} AS {one_row_per_key(table, sound)}")


def one_row_per_key(table: str, files: Sequence[Sound], names: Sequence[str] = ()) -> str:
    """The rows of files that break no rule, one per key: a query for these columns, by default those of the schema."""
    keys = ", ".join(schema.columns(table, Role.KEY))
    return (
        f"SELECT {', '.join(names or schema.columns(table))} FROM ({_source(table, files)})"
        f" WHERE ({first_broken(table)}) IS NULL"
        f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {_order(table)}) = 1"
    )


def wrong_rows(connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[Sound]) -> list[Broken]:
    """What the rows of files are left out for: a finding per file, about its rows or about all of it."""
    if not files:
        return []
    texts = [field.name for field in schema.TABLES[table] if field.name in _texts(table)]
    size = " + ".join(f"coalesce(strlen({name}), 0)" for name in texts) or "0"
    first = schema.columns(table, Role.KEY)[0]
    judged = (
        f"SELECT filename, file_row_number AS place, {first_broken(table)} AS wrong, {size} AS size,"
        f" CASE WHEN strlen({first}) < 1000 THEN {first} END AS name FROM ({_source(table, files)})"
    )
    found = connection.sql(
        "SELECT filename, count(wrong), arg_min(wrong, place) FILTER (wrong IS NOT NULL),"
        " min(place) FILTER (wrong IS NOT NULL), arg_min(name, place) FILTER (wrong IS NOT NULL), sum(size)"
        f" FROM ({judged}) GROUP BY filename HAVING count(wrong) > 0 OR sum(size) > {TEXT} ORDER BY filename"
    ).fetchall()
    broken: list[Broken] = []
    for path, count, rule, place, name, text in found:
        if text > TEXT:
            broken.append(Broken(Path(path), f"its rows have {text:,} bytes of text, and the most is {TEXT:,}", SPLIT))
        else:
            who = f" ({first} {shortened(name, 70)})" if name else ""
            reason = f"{'it is' if count == 1 else 'the first is'} row {place}{who}: {rules(table)[rule].reason}"
            broken.append(Broken(Path(path), reason, CORRECT, count))
    return broken


def contradicted(connection: duckdb.DuckDBPyConnection, table: str, files: Sequence[Sound]) -> list[Broken]:
    """Rows that say something else than a row with the same key that counts; a finding per file.

    A failed row beside a finished one is no contradiction: the trial was run again.
    """
    if table not in _RANKED or not files:
        return []
    keys = ", ".join(schema.columns(table, Role.KEY))
    source = (
        f"SELECT * FROM ({_source(table, files)}) WHERE ({first_broken(table)}) IS NULL AND status <> '{Status.FAILED}'"
    )
    [(repeated,)] = connection.sql(f"SELECT count(*) - count(DISTINCT hash({keys})) FROM ({source})").fetchall()
    if not repeated:
        return []
    content = f"hash({', '.join(_RANKED[table])})"
    first = schema.columns(table, Role.KEY)[0]
    compared = (
        f"SELECT filename, file_row_number AS place, left({first}, 1000) AS name,"
        f" {content} <> first_value({content}) OVER same AS differs FROM ({source})"
        f" WINDOW same AS (PARTITION BY {keys} ORDER BY {_order(table)})"
    )
    found = connection.sql(
        "SELECT filename, count(*), min(place), arg_min(name, place)"
        f" FROM ({compared}) WHERE differs GROUP BY filename ORDER BY filename"
    ).fetchall()
    return [
        Broken(
            Path(path),
            f"{'it is' if count == 1 else 'the first is'} row {place} ({first} {shortened(name, 70)}): another row has "
            "the same key and other content, and was written first",
            CHOOSE,
            count,
        )
        for path, count, place, name in found
    ]


def _source(table: str, files: Sequence[Sound]) -> str:
    """All rows of files, with null for the columns that a file lacks: a query per set of columns that files have."""
    groups: defaultdict[tuple[str, ...], list[Path]] = defaultdict(list)
    for file in files:
        groups[file.columns].append(file.path)
    parts = []
    for columns, paths in groups.items():
        names = ", ".join(
            name if name in columns else f"CAST(NULL AS {kind}) AS {name}" for name, kind in types(table).items()
        )
        found = f"read_parquet([{', '.join(map(_pattern, paths))}], hive_partitioning = false, filename = true,"
        parts.append(f"SELECT {names}, filename, file_row_number FROM {found} file_row_number = true)")
    nothing = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in types(table).items())
    return " UNION ALL ".join(parts) or f"SELECT {nothing}, '' AS filename, 0 AS file_row_number WHERE false"


def types(table: str) -> dict[str, str]:
    """DuckDB's type of each column."""
    if not _TYPES:
        with duckdb.connect(config=CLOSED) as connection:
            for name, columns in schema.TABLES.items():
                empty = connection.from_arrow(columns.empty_table())
                _TYPES[name] = dict(zip(empty.columns, map(str, empty.types), strict=True))
    return _TYPES[table]


_TYPES: dict[str, dict[str, str]] = {}


def _texts(table: str) -> list[str]:
    """Columns of text that ranking reads all rows of."""
    if table not in _RANKED:
        return []
    return [name for name, kind in types(table).items() if kind == "VARCHAR"]


def _order(table: str) -> str:
    """Which of several rows with one key counts: a finished one, the one written first, the first by file name."""
    order = ["filename", "file_row_number"]
    if "written_at" in schema.TABLES[table].names:
        order.insert(0, "CASE WHEN written_at LIKE '20__-__-__T%' THEN written_at END NULLS LAST")
    if "status" in schema.TABLES[table].names:
        order.insert(0, f"(status IS NOT DISTINCT FROM '{Status.FAILED}')")
    return ", ".join(order)


def _pattern(path: Path) -> str:
    """A path in a query, where the wildcards of a folder's name stand for themselves."""
    literal = "".join(f"[{character}]" if character in "*?[" else character for character in str(path))
    return "'" + literal.replace("'", "''") + "'"
