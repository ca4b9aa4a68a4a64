"""What each headline is the mean of, item by item: the table `items`, made from samples where a board lacks it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leaderboard.board import schema
from leaderboard.board.files import BoardError
from leaderboard.board.store import Board
from leaderboard.board.validity import LARGEST_NUMBER, MOST_ITEMS
from tasks.scoring import METRICS
from tasks.task import Sample

WRONG = (ArithmeticError, AttributeError, IndexError, TypeError, ValueError)
"""Errors of a metric where a row's columns do not fit together."""


SOME = 64
"""Evaluations that are read together: reading takes a tenth of a second, and samples are long."""
LONGEST = 1 << 16
"""Characters of an answer: comparing two takes time with the product of their lengths."""
ROUNDING = 1e-6
"""How far a mean of items may be from the measurement, as a share of 1 + its size."""


_SAMPLE = [name for name in schema.columns("samples") if name in {"samples", "probe", *Sample.__slots__}]


class Key(NamedTuple):
    """A row of the table: an evaluation's samples of a probe, by one metric."""

    samples: str
    probe: str
    metric: str


class Scored(NamedTuple):
    """The items of a row in the order of their ids, and the metric on each."""

    items: tuple[str, ...]
    values: NDArray[np.float64]
    mean: float

    def gives(self, measured: float) -> bool:
        """Whether a measurement is the mean of these values: they may be another evaluation's, or anything."""
        return abs(self.mean - measured) <= ROUNDING * (1 + abs(measured))


def item_row(key: Key, samples: Iterable[Sample]) -> dict[str, Any] | None:
    """A row of the table; None where the metric has no number for some item, or there are too many items.

    Raises:
        KeyError: no such metric.
    """
    return _row(key, ((sample.item, _number(key.metric, sample)) for sample in samples))


def read_items(
    board: Board, wanted: Mapping[Key, Collection[float]], unmeasured: Collection[Key] = frozenset()
) -> dict[Key, Scored]:
    """Items by row, those that the board has; rows that it lacks are made from its samples and added to it.

    A board that cannot be written is read all the same.

    Args:
        wanted: by row the measurements that say that they are its mean. A row whose mean is none of them is no such
            row.
        unmeasured: rows about which no measurement says anything, nor any sample; of metrics and probes in `wanted`.
    """

    def right(rows: Mapping[Key, Scored]) -> dict[Key, Scored]:
        return {
            key: scored
            for key, scored in rows.items()
            if key in unmeasured or any(map(scored.gives, wanted.get(key, ())))
        }

    if not wanted:
        return {}
    # On a large board a query that names every evaluation takes longer than to read them all and leave out the others.
    rows = board.read("items", {name: sorted({getattr(key, name) for key in wanted}) for name in ("probe", "metric")})
    found: dict[Key, Scored] = {}
    if rows.num_rows:
        evaluations = pa.array(sorted({key.samples for key in (*wanted, *unmeasured)}))
        found = right(scored_items(rows.filter(pc.is_in(rows["samples"], evaluations))))
    if not any((board.path / "samples").glob("*.parquet")):
        return found
    missing: defaultdict[str, list[Key]] = defaultdict(list)
    for key in sorted(wanted.keys() - found.keys()):
        if key.metric in METRICS:
            missing[key.samples].append(key)
    for rows in _from_samples(board, missing):
        made = right(scored_items(schema.to_arrow("items", rows)))
        with suppress(BoardError, OSError):  # somebody else's board, or a full disk: nothing is lost
            board.append("items", [row for row in rows if Key(*(row[name] for name in Key._fields)) in made])
        found |= made
    return found


def answers_known(board: Board) -> bool:
    """Whether a board has tables of the answers to single questions: items, or the samples that they are made from."""
    return any(os.path.lexists(board.path / table) for table in ("items", "samples"))


def scored_items(table: pa.Table) -> dict[Key, Scored]:
    """The rows of the table `items` by key."""
    found: dict[Key, Scored] = {}
    one_copy: dict[tuple[str, ...], tuple[str, ...]] = {}
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in schema.columns("items")}
        flat = columns["value"].flatten().to_numpy(zero_copy_only=False)
        ids = columns["item"].flatten().dictionary_encode()
        names, places = ids.dictionary.to_pylist(), ids.indices.to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(columns["value"].value_lengths().to_numpy(zero_copy_only=False))])
        sums = np.add.reduceat(np.append(flat, 0.0), ends[:-1]) if len(batch) else np.zeros(0)
        listed: dict[bytes, tuple[tuple[str, ...], NDArray[np.intp] | None]] = {}  # most rows have the same items
        keys = zip(*(columns[name].to_pylist() for name in Key._fields), strict=True)
        for key, start, end, total in zip(keys, ends[:-1].tolist(), ends[1:].tolist(), sums, strict=True):
            if start == end:
                continue
            some = places[start:end]
            if (same := some.tobytes()) not in listed:
                ids_here = [names[place] for place in some]
                by_id = np.array(sorted(range(len(ids_here)), key=ids_here.__getitem__))
                items = tuple(ids_here[place] for place in by_id)
                ordered = (by_id[1:] > by_id[:-1]).all()
                listed[same] = one_copy.setdefault(items, items), None if ordered else by_id
            items, order = listed[same]
            values = flat[start:end] if order is None else flat[start:end][order]
            found[Key(*key)] = Scored(items, values, float(total) / (end - start))
    return found


def _from_samples(board: Board, missing: Mapping[str, Sequence[Key]]) -> Iterator[list[dict[str, Any]]]:
    """Rows that the board's samples give, those of some evaluations at a time."""
    ids = sorted(missing)
    for start in range(0, len(ids), SOME):
        some = {id_: missing[id_] for id_ in ids[start : start + SOME]}
        try:
            yield _scored(board, some)
        except BoardError:  # too many rows: perhaps of one evaluation, which costs the others nothing
            for id_, keys in some.items():
                with suppress(BoardError):
                    yield _scored(board, {id_: keys})


def _scored(board: Board, wanted: Mapping[str, Sequence[Key]]) -> list[dict[str, Any]]:
    """The rows of a few evaluations.

    Raises:
        BoardError: there are more samples than a probe has items.
    """
    keys: defaultdict[tuple[str, str], list[Key]] = defaultdict(list)
    for key in (key for same in wanted.values() for key in same):
        keys[key.samples, key.probe].append(key)
    numbers: defaultdict[Key, list[tuple[str, float | None]]] = defaultdict(list)
    for asked, sample in _samples(board, keys):
        for key in keys.get(asked, ()):
            numbers[key].append((sample.item, _number(key.metric, sample)))
    return [row for key, found in numbers.items() if (row := _row(key, found)) is not None]


def samples_of(board: Board, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], list[Sample]]:
    """Samples by evaluation and probe, those that the board has."""
    found: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    try:
        for asked, sample in _samples(board, wanted) if wanted else ():
            found[asked].append(sample)
    except BoardError:  # more samples than a probe has items
        return {}
    return dict(found)


def _samples(board: Board, wanted: Collection[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], Sample]]:
    """The samples of some evaluations and probes, each with both; of other pairs of them too.

    Raises:
        BoardError: there are more than probes have items.
    """
    where = {"samples": sorted({id_ for id_, _ in wanted}), "probe": sorted({probe for _, probe in wanted})}
    table = board.read("samples", where, _SAMPLE, most=MOST_ITEMS * len(wanted))
    for batch in table.to_batches(1024):
        for row in batch.to_pylist():
            yield (row["samples"], row["probe"]), _sample(row)


def _sample(row: dict[str, Any]) -> Sample:
    names = Sample.__slots__
    fields: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names}
    return Sample(**{**fields, "scalars": fields["scalars"] or ()})


def _number(metric: str, sample: Sample) -> float | None:
    if any(len(text) > LONGEST for text in (sample.reference or "", sample.generated or "", *(sample.sampled or ()))):
        return None
    try:
        number = METRICS[metric].compute(sample)
    except WRONG:
        return None
    return None if number is None or not abs(number) <= LARGEST_NUMBER else float(number)  # NaN is not <= anything


def _row(key: Key, numbers: Iterable[tuple[str, float | None]]) -> dict[str, Any] | None:
    ordered = sorted(numbers, key=itemgetter(0))
    if not 0 < len(ordered) <= MOST_ITEMS or any(number is None for _, number in ordered):
        return None
    return {**key._asdict(), "item": [item for item, _ in ordered], "value": [number for _, number in ordered]}
