"""What each headline is the mean of, item by item: the table `items`, made from samples where a board lacks it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leaderboard.board import schema
from leaderboard.board.files import BoardError
from leaderboard.board.store import Board
from tasks.scoring import METRICS
from tasks.scoring.tables import Missing, values
from tasks.task import Sample

WRONG = (ArithmeticError, AttributeError, IndexError, TypeError, ValueError)
"""Errors of a metric where a row's columns do not fit together."""


class Key(NamedTuple):
    """A row of the table: an evaluation's samples of a probe, by one metric."""

    samples: str
    probe: str
    metric: str


class Scored(NamedTuple):
    """The items of a row in the order of their ids, and the metric on each."""

    items: tuple[str, ...]
    values: NDArray[np.float64]


def item_row(key: Key, samples: Iterable[Sample]) -> dict[str, Any] | None:
    """A row of the table; None where the metric has no finite number for some item.

    Raises:
        KeyError: no such metric.
    """
    ordered = sorted(samples, key=lambda sample: sample.item)
    try:
        numbers = values(key.metric, METRICS[key.metric].compute, ordered)
    except (Missing, *WRONG):
        return None
    if not numbers or not np.isfinite(numbers).all():
        return None
    return {**key._asdict(), "item": [sample.item for sample in ordered], "value": numbers}


def read_items(board: Board, wanted: Iterable[Key]) -> dict[Key, Scored]:
    """Items by row, those that the board has; rows that it lacks are made from its samples and added to it.

    A board that cannot be written is read all the same.
    """
    keys = set(wanted)
    if not keys:
        return {}
    where = {name: sorted({getattr(key, name) for key in keys}) for name in Key._fields}
    found = {key: scored for key, scored in scored_items(board.read("items", where)).items() if key in keys}
    missing: defaultdict[str, list[Key]] = defaultdict(list)
    for key in sorted(keys - found.keys()):
        missing[key.samples].append(key)
    rows = _from_samples(board, missing)
    if rows:
        with suppress(BoardError, OSError):  # somebody else's board, or a full disk: nothing is lost
            board.append("items", rows)
        found |= scored_items(schema.to_arrow("items", rows))
    return found


def scored_items(table: pa.Table) -> dict[Key, Scored]:
    """The rows of the table `items` by key."""
    found: dict[Key, Scored] = {}
    orders: dict[tuple[str, ...], tuple[str, ...]] = {}  # one copy of each list of ids
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in schema.columns("items")}
        flat = columns["value"].flatten().to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(columns["value"].value_lengths().to_numpy(zero_copy_only=False))])
        keys = zip(*(columns[name].to_pylist() for name in Key._fields), strict=True)
        for index, key in enumerate(keys):
            items = tuple(columns["item"][index].as_py())
            items = orders.setdefault(items, items)
            numbers = flat[ends[index] : ends[index + 1]]
            if list(items) != sorted(items):
                order = np.array(sorted(range(len(items)), key=items.__getitem__))
                items, numbers = tuple(items[i] for i in order), numbers[order]
            found[Key(*key)] = Scored(items, numbers)
    return found


def _from_samples(board: Board, missing: Mapping[str, Sequence[Key]]) -> list[dict[str, Any]]:
    """Rows that the board's samples give."""
    rows: list[dict[str, Any]] = []
    ids = sorted(missing)
    for start in range(0, len(ids), 64):  # samples have long texts: few evaluations at a time are in memory
        some = ids[start : start + 64]
        probes = sorted({key.probe for id_ in some for key in missing[id_]})
        names = [name for name in schema.columns("samples") if name in {"samples", "probe", *Sample.__slots__}]
        tables: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
        for row in board.read("samples", {"samples": some, "probe": probes}, names).to_pylist():
            where = row.pop("samples"), row.pop("probe")
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
            tables[where].append(Sample(**{**fields, "scalars": fields["scalars"] or ()}))
        for id_ in some:
            made = (item_row(key, tables[id_, key.probe]) for key in missing[id_] if (id_, key.probe) in tables)
            rows += [row for row in made if row is not None]
    return rows
