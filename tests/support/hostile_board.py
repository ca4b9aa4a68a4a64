"""Rows and files that somebody may put on a shared board, beside good ones, and what the command shows of it."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaderboard.board import schema
from leaderboard.board.store import Board
from tests.support.board_rows import Row, anchor_rows, entry_rows, fill, runs_of

GOOD = {"first": (0.9, 0.7, 0.95), "second": (0.8, 0.4, 0.97), "third": (0.7, 0.6, 0.6)}
"""Entries of the good board: F, R and U."""

SPEC = json.dumps({"optimizer": {"name": "adam", "lr": 0.001}, "steps": 40})


def good_board(store: Path) -> Board:
    """A store whose board has three entries with three seeds each, which is what a rank takes."""
    board = Board(store / "board")
    fill(board, [], anchor_rows())
    for entry, numbers in GOOD.items():
        for row, rows in runs_of(entry, *numbers, spec=SPEC):
            fill(board, [row], rows)
    return board


def bad_entry(**changes: Any) -> tuple[Row, list[Row]]:
    """A trial with its measurements, of an entry of its own."""
    row, rows = entry_rows("bad", 0.95, 0.9, 0.99, spec=SPEC)
    return row | changes, rows


def put(store: Path, table: str, rows: list[Row], name: str = "bad", **options: Any) -> Path:
    """Write rows as a file of the board of a store, whatever they hold: with none of the checks of `Board.append`."""
    columns = [pa.field(field.name, field.type) for field in schema.TABLES[table]]  # without NOT NULL
    content = pa.Table.from_pylist(rows, schema=pa.schema(columns, schema.TABLES[table].metadata))
    return put_table(store, table, content, name, **options)


def put_table(store: Path, table: str, content: pa.Table, name: str = "bad", **options: Any) -> Path:
    path = store / "board" / table / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


def trials_table(**changes: Any) -> pa.Table:
    """The bad entry's trial as a table."""
    return schema.to_arrow("trials", [bad_entry(**changes)[0]])


# Files: each makes one and returns its path.

File = Callable[[Path], Path]


def _written(change: Callable[[bytes], bytes]) -> File:
    def make(store: Path) -> Path:
        path = put_table(store, "trials", trials_table())
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def _table(change: Callable[[pa.Table], pa.Table], name: str = "bad") -> File:
    return lambda store: put_table(store, "trials", change(trials_table()), name)


def _version(version: bytes | None) -> File:
    def change(table: pa.Table) -> pa.Table:
        metadata = {b"table": b"trials"} | ({b"schema_version": version} if version is not None else {})
        return table.replace_schema_metadata(metadata)

    return _table(change)


def _made(make: Callable[[Path], object]) -> File:
    def file(store: Path) -> Path:
        path = store / "board" / "trials" / "bad.parquet"
        make(path)
        return path

    return file


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(os.path.relpath(path))  # its address has room for a hundred characters


def _zeroed_inside(content: bytes) -> bytes:
    footer = struct.unpack("<I", content[-8:-4])[0] + 8
    middle = (len(content) - footer) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


def _long_footer(content: bytes) -> bytes:
    return content[:-8] + struct.pack("<I", 50 << 20) + content[-4:]


def _invalid_utf8(table: pa.Table) -> pa.Table:
    wrong = pa.array([b"\xed\xa0\x80 \xff"], pa.binary())
    place = table.schema.get_field_index("optimizer")
    return table.set_column(place, table.schema.field(place), pa.Array.from_buffers(pa.string(), 1, wrong.buffers()))


def _with(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.append_column(name, pa.array(["x"]))


def _repeated(value: str, rows: int) -> pa.Table:
    """Rows that differ in nothing, of which a file keeps one value and a run length."""
    table = trials_table()
    columns = {name: table[name].combine_chunks() for name in table.column_names if not table[name].null_count}
    one = pa.array(np.zeros(rows, np.int32))
    columns = {name: pa.DictionaryArray.from_arrays(one, column) for name, column in columns.items()}
    columns["reason"] = pa.DictionaryArray.from_arrays(one, pa.array([value]))
    return pa.table(columns)


def _bomb(value: str, rows: int) -> File:
    def make(store: Path) -> Path:
        path, content = store / "board" / "trials" / "bad.parquet", _repeated(value, rows)
        # Without Arrow's own schema in the footer, readers see plain texts and numbers.
        with pq.ParquetWriter(path, content.schema, store_schema=False, compression="zstd") as writer:
            writer.write_table(content, row_group_size=rows)
            writer.add_key_value_metadata({"table": "trials", "schema_version": "1"})
        return path

    return make


def _wide(table: pa.Table) -> pa.Table:
    extra = {f"extra {index}": ["x"] for index in range(10_000)}
    columns = {name: table[name] for name in table.column_names} | extra
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


FILES: dict[str, File] = {
    "cut short": _written(lambda content: content[:-40]),
    "of no bytes": _written(lambda content: b""),
    "of three bytes": _written(lambda content: b"PAR"),
    "corrupted in the middle": _written(_zeroed_inside),
    "with a footer of 50 MB": _written(_long_footer),
    "a folder": _made(Path.mkdir),
    "a FIFO": _made(os.mkfifo),
    "a socket": _made(_bind),
    "a link to nothing": _made(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _made(lambda path: path.symlink_to(path)),
    "a device": _made(lambda path: path.symlink_to("/dev/zero")),
    "of another table": lambda store: put(store, "measurements", bad_entry()[1]).rename(
        store / "board" / "trials" / "bad.parquet"
    ),
    "with a column of another type": _table(lambda t: t.set_column(1, pa.field("entry", pa.int64()), [[7]])),
    "of a newer schema": _version(b"999"),
    "of an absurd schema": _version(b"9" * 5000),
    "without a schema version": _version(None),
    "with 10,000 more columns": _table(_wide),
    "with a column in capitals": _table(_with("ENTRY")),
    "with a column of a reader's": _table(_with("file_row_number")),
    "with an invalid text": _table(_invalid_utf8),
    "with quotes in its name": _table(lambda t: t, 'it\'s "bad"'),
    "with controls in its name": _table(lambda t: t, "bad\n\x1b[2J\u202e"),
    "with a smile in its name": _table(lambda t: t, "bad 😀"),
    "with wildcards in its name": _table(lambda t: t, "*?[a]"),
}
BOMBS: dict[str, File] = {
    "of two million equal rows": _bomb("x", 2_000_000),
    "of a terabyte of text": _bomb("x" * 1_000_000, 1_000_000),
    "of texts that are too long together": _bomb("x" * 60_000, 100_000),
}
