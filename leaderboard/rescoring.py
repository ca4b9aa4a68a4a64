"""Numbers computed again from what the models did: any number of samples, with the metrics' one and only definitions.

Files are read a batch of rows at a time, every row goes through the functions of `tasks.scoring`, and of what comes out
eight bytes a number are kept until the mean. Generated text costs far more than the rest, so it goes to other processes
once there is much of it.
"""

from __future__ import annotations

import math
import os
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from leaderboard.files import BoardError
from leaderboard.samples import read_samples
from tasks.scoring import METRICS, Estimate
from tasks.scoring.estimate import mean
from tasks.scoring.tables import lacking
from tasks.task import ProbeKind, Sample

ALONE = 5000
"""Generated texts up to which no other process is started: it takes seconds to start and these take one."""
CHUNK = 256
"""Generated texts scored at a time."""
AHEAD = 4
"""Chunks that lie ready for each process."""
WRONG = (ArithmeticError, AttributeError, IndexError, TypeError, ValueError)
"""What a metric raises where a row's columns do not fit together: lengths that differ, a text that is not there."""

_Values = list[list[float | None]]


@dataclass(frozen=True, slots=True)
class _Text:
    """A generated text to be scored: whose it is, where it was read, and its place among all of them."""

    group: _Group
    sample: Sample
    where: str
    place: int


class _Group:
    """What is known of one probe of one evaluation: a column of numbers per metric, or why there is none.

    Attributes:
        here: metrics that are computed in this process.
        texts: metrics of generated text.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self.numbers = {name: array("d") for name in metrics}
        self.reasons: dict[str, tuple[int, Sample]] = {}
        self.texts = tuple(name for name in metrics if METRICS[name].kind is ProbeKind.GENERATE)
        here = [name for name in metrics if name not in self.texts]
        self.here = [(name, METRICS[name].of, self.numbers[name].append) for name in here]

    def measure(self, sample: Sample) -> None:
        for name, of, append in self.here:
            value = of(sample)
            if value is None:
                self.reasons.setdefault(name, (0, sample))
            else:
                append(value)

    def add(self, text: _Text, values: Sequence[float | None]) -> None:
        """The numbers of `texts`. They come in any order, but the reason is the first text's that has none."""
        for name, value in zip(self.texts, values, strict=True):
            if value is not None:
                self.numbers[name].append(value)
            elif name not in self.reasons or text.place < self.reasons[name][0]:
                self.reasons[name] = (text.place, text.sample)

    def estimate(self, name: str) -> Estimate:
        if name in self.reasons:
            return Estimate.null(str(lacking(self.reasons[name][1], name)))
        return mean(self.numbers[name])


def rescore(
    files: Iterable[str | os.PathLike[str]],
    metrics_of: Mapping[str, Sequence[str]],
    processes: int | None = None,
) -> dict[tuple[str, str, str], Estimate]:
    """What `tasks.scoring.score` says of each evaluation's probes: by samples id, probe and metric.

    Args:
        files: Parquet files of the table `samples`. Of several rows with one key the first counts.
        metrics_of: names in `tasks.scoring.METRICS` by probe. Rows of other probes are passed over.
        processes: for generated text; the number of cores by default, 1 for this process alone.

    Raises:
        KeyError: no such metric.
        BoardError: a file is not there or not one of this table, or a row cannot be read; with file and row (from 0).
    """
    if unknown := {name for names in metrics_of.values() for name in names} - METRICS.keys():
        raise KeyError(min(unknown))
    groups: dict[tuple[str, str], _Group] = {}
    seen: set[int] = set()
    with ExitStack() as stack:
        texts = _Texts(processes or os.cpu_count() or 1, stack)
        for path in map(Path, files):
            for row, key, sample in read_samples(path, list(metrics_of)):
                name = hash((key, sample.item))  # 64 bits: two of a million rows agree in one run of 10^7
                if name in seen:
                    continue
                seen.add(name)
                group = groups.get(key)
                if group is None:
                    group = groups[key] = _Group(metrics_of[key[1]])
                try:
                    group.measure(sample)
                except WRONG as error:
                    raise _unusable(f"{path}: row {row}", sample, error) from None
                if group.texts:
                    texts.add(group, sample, f"{path}: row {row}")
        texts.finish()
    return {
        (samples, probe, metric): group.estimate(metric)
        for (samples, probe), group in groups.items()
        for metric in metrics_of[probe]
    }


class _Texts:
    """Scores generated texts: here, and in other processes as well once there are many.

    While the others have enough to do (they take seconds to start), this process scores a chunk itself.
    """

    def __init__(self, processes: int, stack: ExitStack) -> None:
        self.others, self.stack = processes - 1, stack
        self.alone = ALONE if self.others else math.inf
        self.pool: ProcessPoolExecutor | None = None
        self.place = 0
        self.chunk: list[_Text] = []
        self.waiting: deque[tuple[list[_Text], Future[_Values]]] = deque()

    def add(self, group: _Group, sample: Sample, where: str) -> None:
        self.chunk.append(_Text(group, sample, where, self.place))
        self.place += 1
        if len(self.chunk) == CHUNK:
            self._pass_on()

    def finish(self) -> None:
        self._pass_on()
        while self.waiting:
            self._receive()

    def _pass_on(self) -> None:
        chunk, self.chunk = self.chunk, []
        while self.waiting and self.waiting[0][1].done():
            self._receive()
        if self.place <= self.alone or len(self.waiting) >= AHEAD * self.others:
            _keep(chunk, _scored([_question(text) for text in chunk]))
            return
        if self.pool is None:
            # spawn: a fork of a process with threads (Arrow has some) may hang
            pool = ProcessPoolExecutor(self.others, mp_context=get_context("spawn"))
            self.pool = self.stack.enter_context(pool)
        self.waiting.append((chunk, self.pool.submit(_scored, [_question(text) for text in chunk])))

    def _receive(self) -> None:
        chunk, future = self.waiting.popleft()
        _keep(chunk, future.result())


_Question = tuple[tuple[str, ...], str, str, str | None, str]


def _question(text: _Text) -> _Question:
    # Texts instead of the sample: a tenth of the work to send.
    return text.group.texts, text.sample.item, text.sample.reference, text.sample.generated, text.where


def _keep(chunk: Sequence[_Text], values: _Values) -> None:
    for text, numbers in zip(chunk, values, strict=True):
        text.group.add(text, numbers)


def _scored(questions: Sequence[_Question]) -> _Values:
    """The metrics of each text; runs in any process."""
    found: _Values = []
    for names, item, reference, generated, where in questions:
        sample = Sample(item, reference, generated)
        try:
            found.append([METRICS[name].of(sample) for name in names])
        except WRONG as error:
            raise _unusable(where, sample, error) from None
    return found


def _unusable(where: str, sample: Sample, error: Exception) -> BoardError:
    what = f"item {sample.item} cannot be scored ({type(error).__name__}: {error})"
    return BoardError(f"{where}: {what}. What to do: measure it again; its columns do not fit together")
