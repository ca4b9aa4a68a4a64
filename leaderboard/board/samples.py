"""Reads samples back from files of the table `samples`, a batch of rows at a time.

A row's lists are slices of the batch's flat columns, which costs a tenth of row-by-row conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leaderboard.board import schema
from leaderboard.board.files import BoardError, problem
from tasks.task import Sample

ROWS = 1024
"""Rows in memory at a time: 10 MB of Python numbers with answers of 40 tokens, 0.3 GB with texts of 2,000."""

BUFFER = 1 << 20
"""Bytes of a column that are read from disk at a time. By default Arrow keeps everything that it has read."""

_SAMPLE = tuple(column.name for column in fields(Sample))


def count_rows(path: Path) -> int:
    """Rows of a file of samples.

    Raises:
        BoardError: the file is not there, damaged, or not one of this table.
    """
    if not path.exists():
        raise BoardError(f"{path}: no such file. What to do: name files of samples")
    if broken := problem(path, "samples"):
        raise BoardError(str(broken))
    return pq.read_metadata(path).num_rows


def read_samples(
    path: Path, probes: Sequence[str], start: int, stop: int
) -> Iterator[tuple[int, tuple[str, str], Sample]]:
    """Number (from 0), (samples id, probe) and sample of each row of these probes, from row `start` to before `stop`.

    Rows before `start` in its row group are read and discarded, which costs a twentieth of scoring them.

    Raises:
        BoardError: the file is damaged.
    """
    wanted = pa.array(probes, pa.string())
    names = schema.columns("samples")
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            present = [name for name in names if name in file.schema_arrow.names]
            groups, first = _groups(file.metadata, start, stop)
            for batch in file.iter_batches(batch_size=ROWS, row_groups=groups, columns=present):
                inside = batch.slice(max(start - first, 0), max(stop - max(start, first), 0))
                indices = pc.indices_nonzero(pc.is_in(inside["probe"], wanted))
                selected = inside.take(indices) if len(indices) < batch.num_rows else batch
                columns = {name: _values_of(selected[name]) for name in selected.schema.names}
                missing = [None] * selected.num_rows
                columns["scalars"] = [pairs or () for pairs in columns.get("scalars", missing)]
                keys = zip(columns["samples"], columns["probe"], strict=True)
                rows = zip(*(columns.get(name, missing) for name in _SAMPLE), strict=True)
                for index, key, row in zip(indices.tolist(), keys, rows, strict=True):
                    yield max(start, first) + index, key, Sample(*row)
                first += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise BoardError(f"{path}: damaged ({str(error).splitlines()[0]}). What to do: fetch it again") from None


def _groups(metadata: pq.FileMetaData, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold the rows from `start` to before `stop`, and the number of their first row."""
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    firsts = list(accumulate(sizes, initial=0))
    groups = [index for index, (first, end) in enumerate(pairwise(firsts)) if first < stop and start < end]
    return groups, firsts[groups[0]] if groups else start


def _values_of(column: pa.Array) -> list[Any]:
    """A column's values; lists become tuples, sliced out of the flat column in one pass."""
    rows = len(column)
    if column.null_count == rows:
        return [None] * rows
    if pa.types.is_map(column.type):
        flat = list(zip(_values_of(column.keys), _values_of(column.items), strict=True))
    elif pa.types.is_list(column.type):
        flat = _values_of(column.values)
    elif column.null_count and not pa.types.is_string(column.type):
        return column.to_pylist()  # numpy has no null among numbers
    else:
        return column.to_numpy(zero_copy_only=False).tolist()
    offsets = column.offsets.to_numpy().tolist()
    values = tuple(flat)  # a slice of a tuple is a tuple
    lists: list[tuple[Any, ...] | None] = [values[start:end] for start, end in pairwise(offsets)]
    if column.null_count:
        valid = column.is_valid().to_numpy(zero_copy_only=False).tolist()
        lists = [one if is_valid else None for one, is_valid in zip(lists, valid, strict=True)]
    return lists
