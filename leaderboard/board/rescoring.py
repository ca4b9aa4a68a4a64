"""Scores stored samples again, any number of them, with the same metric functions as the evaluation.

Files are read a batch of rows at a time, every row goes through the functions of `tasks.scoring`, and the results take
eight bytes a number until the mean. Many rows are divided into stretches, each of which one process reads and scores.
Stretches are merged like batches: a later part adds only items that are new.
"""

from __future__ import annotations

import gc
import os
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice
from multiprocessing import get_context
from pathlib import Path

from leaderboard.board.files import BoardError
from leaderboard.board.samples import count_rows, read_samples
from tasks.scoring import METRICS, Estimate
from tasks.scoring.estimate import mean
from tasks.scoring.tables import lacking
from tasks.task import Sample

SHARE = 100_000
"""Rows that justify another process: four seconds of work; starting one takes up to three."""
MOST = 5
"""Most processes by default: each takes 0.3 GiB, and a million rows should fit in 2 GiB on any machine."""
STRETCHES = 4
"""Stretches per process, so that all end at about the same time. Each reads half a row group too much on average."""
BATCH = 1024
"""Rows that go through one metric after another: few enough for the caches that metrics share."""
WRONG = (ArithmeticError, AttributeError, IndexError, TypeError, ValueError)
"""Errors of a metric where a row's columns do not fit together: lengths that differ, a text that is missing."""

_Key = tuple[str, str]
"""Samples id and probe."""
_MetricsOf = dict[str, Sequence[str]]
_Stretch = tuple[Path, int, int]
"""A file, its first row, and the row after its last."""


@dataclass(slots=True)
class _Table:
    """Rows of one probe of one evaluation: each item once, and a column of numbers per metric.

    Attributes:
        items: in the order of the rows.
        numbers: by metric, in the same order; 0 where there is none.
        lacking: by metric the items that lack an input of it, in the same order.
        broken: items that cannot be scored: their row and the error.
    """

    items: dict[str, None]
    numbers: dict[str, array[float]]
    lacking: dict[str, list[str]]
    broken: dict[str, tuple[int, str]]

    @classmethod
    def empty(cls, metrics: Iterable[str]) -> _Table:
        return cls({}, {name: array("d") for name in metrics}, {name: [] for name in metrics}, {})

    def measure(self, path: Path, rows: Mapping[str, tuple[int, Sample]]) -> None:
        """Fills an empty table with rows of a file, by item."""
        self.items = dict.fromkeys(rows)
        for name, numbers in self.numbers.items():
            compute = METRICS[name].compute
            try:
                known = [value for _, sample in rows.values() if (value := compute(sample)) is not None]
            except WRONG:
                known = []
            if len(known) < len(rows):  # row by row is slower and finds which
                known = [self._number(name, f"{path}: row {row}", row, sample) for row, sample in rows.values()]
            numbers.extend(known)

    def _number(self, name: str, where: str, row: int, sample: Sample) -> float:
        try:
            value = METRICS[name].compute(sample)
        except WRONG as error:
            what = f"item {sample.item} cannot be scored ({type(error).__name__}: {error})"
            what = f"{where}: {what}. What to do: measure it again; its columns do not fit together"
            self.broken.setdefault(sample.item, (row, what))
            return 0.0
        if value is None:
            self.lacking[name].append(sample.item)
            return 0.0
        return value

    def add(self, later: _Table) -> list[tuple[int, str]]:
        """Adds the items that are new: the first row of a key counts. Returns the rows that cannot be scored."""
        new = [item not in self.items for item in later.items]
        for name, numbers in self.numbers.items():
            numbers.extend(compress(later.numbers[name], new))
            self.lacking[name] += [item for item in later.lacking[name] if item not in self.items]
        broken = {item: wrong for item, wrong in later.broken.items() if item not in self.items}
        self.broken |= broken
        self.items |= later.items
        return list(broken.values())

    def estimate(self, name: str) -> Estimate:
        if self.lacking[name]:
            return Estimate.null(str(lacking(Sample(self.lacking[name][0], ""), name)))
        return mean(self.numbers[name])


_Tables = dict[_Key, _Table]


def rescore(
    files: Iterable[str | os.PathLike[str]],
    metrics_of: Mapping[str, Sequence[str]],
    processes: int | None = None,
) -> dict[tuple[str, str, str], Estimate]:
    """`tasks.scoring.score` for each evaluation's probes: by samples id, probe and metric.

    Args:
        files: Parquet files of the table `samples`. Of several rows with one key the first counts.
        metrics_of: names in `tasks.scoring.METRICS` by probe. Rows of other probes are skipped.
        processes: most processes, by default one per core up to `MOST`; 1, or few rows: only this process works.

    Raises:
        KeyError: no such metric.
        BoardError: a file is not there or not one of this table, or a row cannot be read; names file and row (from 0).
    """
    if unknown := {name for names in metrics_of.values() for name in names} - METRICS.keys():
        raise KeyError(min(unknown))
    tables: _Tables = {}
    for part in _parts([Path(path) for path in files], dict(metrics_of), processes or min(os.cpu_count() or 1, MOST)):
        if broken := _add(tables, part):
            raise BoardError(min(broken)[1])
    return {(*key, metric): table.estimate(metric) for key, table in tables.items() for metric in metrics_of[key[1]]}


def _parts(paths: Sequence[Path], metrics_of: _MetricsOf, processes: int) -> Iterator[_Tables]:
    """The tables of the files' rows, part by part, in the order of the rows."""
    counts = [count_rows(path) for path in paths]
    processes = min(processes, sum(counts) // SHARE)
    if processes <= 1:
        for path, count in zip(paths, counts, strict=True):
            yield from _batches(metrics_of, (path, 0, count))
        return
    size = -(-sum(counts) // (STRETCHES * processes))
    stretches = [
        (path, start, min(start + size, count))
        for path, count in zip(paths, counts, strict=True)
        for start in range(0, count, size)
    ]
    # spawn: a fork of a process with threads (Arrow has some) may hang. gc is off: nothing here makes reference cycles,
    # and looking for them among so many tuples takes a tenth of the time.
    with ProcessPoolExecutor(processes, get_context("spawn"), gc.disable) as pool:
        yield from pool.map(partial(_scored, metrics_of), stretches)


def _scored(metrics_of: _MetricsOf, stretch: _Stretch) -> _Tables:
    tables: _Tables = {}
    for part in _batches(metrics_of, stretch):
        _add(tables, part)
    return tables


def _batches(metrics_of: _MetricsOf, stretch: _Stretch) -> Iterator[_Tables]:
    path, start, stop = stretch
    rows = read_samples(path, list(metrics_of), start, stop)
    while batch := list(islice(rows, BATCH)):
        by_key: dict[_Key, dict[str, tuple[int, Sample]]] = defaultdict(dict)
        for row, key, sample in batch:
            # interned: all evaluations of a board have the same items, which are stored and sent once
            by_key[key].setdefault(sys.intern(sample.item), (row, sample))
        tables = {key: _Table.empty(metrics_of[key[1]]) for key in by_key}
        for key, table in tables.items():
            table.measure(path, by_key[key])
        yield tables


def _add(tables: _Tables, part: _Tables) -> list[tuple[int, str]]:
    """Adds each table's new items. Returns the rows among them that cannot be scored, with the error."""
    broken: list[tuple[int, str]] = []
    for key, table in part.items():
        if key not in tables:
            tables[key] = _Table.empty(table.numbers)
        broken += tables[key].add(table)
    return broken
