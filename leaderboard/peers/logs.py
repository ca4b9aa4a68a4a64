"""Reads one evaluation in open-unlearning's format: a log per benchmark, a number per metric, a row per example.

`TOFU_EVAL.json` (or `MUSE_EVAL.json`) maps each metric to its aggregate, `agg_value`, and its rows, `value_by_index`.
`TOFU_SUMMARY.json` repeats some of the aggregates; the others are only in the log. Rows are joined by their index,
never by position: rows that could not be scored are null, and positions shift where they are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from leaderboard.peers.log_file import WRITTEN, characters, load
from tasks.plain_text import cut
from tasks.task import MissingDataError, TaskError

BENCHMARKS = ("TOFU", "MUSE")
PEER = "open-unlearning"

LOSSES = ("avg_loss",)
"""Fields with average losses, nats per token."""
LEAST, MOST = -1e-3, 1e9
"""A loss is not negative, but for rounding; the largest is far above any model's, and its powers are still doubles."""
LONGEST = 200_000
"""Characters of a text that is scored: a hundred times a published answer's, and still a matter of a second."""

Value = TypeVar("Value", float, tuple[float, ...], str)


@dataclass(frozen=True)
class Log:
    """An evaluation's log and summary.

    Attributes:
        benchmark: `TOFU` or `MUSE`.
        file: the log, for messages; the summary where there is no log.
        metrics: the log's entries by metric.
        published: the aggregates by metric, from the summary where it has them; None for one that is null.
        content: what is in the files.
        peer: the suite whose log it is.
        places: how the file names what is an entry of `metrics`, where it has other names.
    """

    benchmark: str
    file: Path
    metrics: Mapping[str, Any]
    published: Mapping[str, float | None]
    content: Any = field(repr=False)
    peer: str = PEER
    places: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content of the files, whatever their formatting."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> Log:
        """The evaluation in a folder.

        Raises:
            TaskError: there is none, or a file is damaged; names file, metric and index.
        """
        if not folder.is_dir():
            what = "no folder" if os.path.lexists(folder) else "no such folder"
            raise MissingDataError(f"{folder}: {what}. Name the folder that holds TOFU_EVAL.json or MUSE_EVAL.json")
        evaluations = {name: files for name in BENCHMARKS if (files := _files(folder, name))}
        if len(evaluations) != 1:
            found = "logs of several benchmarks" if evaluations else "neither TOFU_EVAL.json nor MUSE_EVAL.json"
            raise TaskError(f"{folder}: {found} here. Name a folder that holds one evaluation")
        [(benchmark, files)] = evaluations.items()
        file, *_ = files.values()
        log, summary = files.get("EVAL"), files.get("SUMMARY")
        metrics, aggregates = (load(one) if one else {} for one in (log, summary))
        published: dict[str, float | None] = {}
        for name, entry in metrics.items():
            characters(name, str(log))
            if not isinstance(entry, dict):
                raise TaskError(f"{log}: {cut(name)}: not an object with agg_value and value_by_index. Evaluate again")
            if "agg_value" in entry:
                published[name] = number(entry["agg_value"], f"{log}: {cut(name)}: agg_value")
        for name, value in aggregates.items():
            characters(name, str(summary))
            published[name] = number(value, f"{summary}: {cut(name)}")
        if not metrics and not published:
            raise TaskError(f"{file}: there is no metric in it. Evaluate again")
        return cls(
            benchmark=benchmark,
            file=file,
            metrics=metrics,
            published=published,
            content=[metrics, aggregates],
        )

    def rows(self, metric: str, field: str, kind: type[Value], part: str | None = None) -> Mapping[str, Value | None]:
        """A field of a metric's rows by index, empty where the log lacks the metric; None for an example that could not
        be scored.

        Args:
            kind: type of the field: a number (`float`), several (`tuple`) or text (`str`).
            part: the part of the entry with the rows, where it has several (`forget` and `holdout`).

        Raises:
            TaskError: the entry has no rows, or a row lacks the field or has another type there.
        """
        rows, where = self._rows(metric, part)
        loss = field in LOSSES or metric == "mia_loss"
        column = _column(rows.values(), field, kind, loss)
        if column is not None:
            return dict(zip(rows, column, strict=True))
        values: dict[str, Value | None] = {}
        for index, row in rows.items():
            try:
                values[index] = _field(row, field, kind, loss)
            except _Wrong as error:
                characters(index, where)
                raise TaskError(f"{where}: index {cut(index)}: {error}. Evaluate again") from None
        return values

    def indices(self, metric: str, part: str | None = None) -> list[str]:
        """The indices of a metric's examples, those included that could not be scored; none where the log lacks it."""
        return list(self._rows(metric, part)[0])

    def place(self, metric: str, part: str | None = None) -> str:
        """Where a metric's rows are in the file, for messages."""
        name = self.places.get(metric, metric)
        return f"{name}.{part}" if part else name

    def _rows(self, metric: str, part: str | None) -> tuple[Mapping[str, Any], str]:
        """A metric's rows by index, and their location for messages."""
        if metric not in self.metrics:
            return {}, str(self.file)
        entry, name = self.metrics[metric], self.place(metric, part)
        if part:
            entry = entry.get(part)
        rows = entry.get("value_by_index") if isinstance(entry, dict) else None
        if not isinstance(rows, dict):
            raise TaskError(f"{self.file}: {name}: value_by_index is missing. Evaluate again, or take the metric out")
        characters("".join(rows), f"{self.file}: {name}")
        return rows, f"{self.file}: {name}"

    def check_aligned(self, metrics: Sequence[str], part: str | None = None) -> None:
        """Check that those metrics that the log has, which are about the same examples, have the same indices.

        Raises:
            TaskError: one lacks an index that another has.
        """
        by_metric = {metric: self._rows(metric, part)[0] for metric in metrics if metric in self.metrics}
        for name, rows in by_metric.items():
            for other, wanted in by_metric.items():
                if missing := [index for index in wanted if index not in rows]:
                    raise TaskError(
                        f"{self.file}: {self.place(name)}: index {cut(missing[0])} is missing, which "
                        f"{self.place(other)} has ({len(rows)} rows against {len(wanted)}). Evaluate both on the same "
                        "examples"
                    )


class _Wrong(ValueError):
    """A value is not what is expected; the message has no place."""


def _column(rows: Collection[Any], field: str, kind: type[Value], loss: bool) -> list[Value | None] | None:
    """A field of all rows, or None where a row may have something else there.

    `_field` says what is wrong, and is asked of every row then. Checks of whole columns take a third of the time.
    """
    try:
        column = [None if row is None else row[field] for row in rows]
    except (KeyError, TypeError):
        return None
    present = [value for value in column if value is not None]
    if kind is str:
        sound = _types(present) <= {str} and len(max(present, key=len, default="")) <= LONGEST
        return column if sound and _encodes("".join(present)) else None
    if kind is tuple:
        if not (_types(present) <= {list} and all(present)):
            return None
        column = [None if value is None else tuple(value) for value in column]
        present = list(chain.from_iterable(present))
    # A NaN in the first place is both the least and the largest, and is within no bounds; others are not looked at.
    if math.inf in present or -math.inf in present:
        return None
    sound = _types(present) <= {float} and (not loss or not present or LEAST <= min(present) <= max(present) <= MOST)
    return column if sound else None


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _encodes(text: str) -> bool:
    """Whether UTF-8 has bytes for it: there is no half of a surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _field(row: Any, field: str, kind: type[Value], loss: bool) -> Value | None:
    if row is None:
        return None
    if not isinstance(row, dict) or field not in row:
        raise _Wrong(f"{field} is missing")
    value = row[field]
    if value is None:
        return None
    found: float | tuple[float, ...] | str | None = None
    if kind is float:
        found = _as_number(value, field, loss)
    elif kind is tuple and isinstance(value, list) and value and None not in value:
        found = tuple([_as_number(one, field, loss) for one in value])
    elif kind is str and isinstance(value, str):
        found = _as_text(value, field)
    if not isinstance(found, kind):
        raise _Wrong(f"{field}: {value!r:.60} is not {'text' if kind is str else 'a list of numbers'}")
    return found


def _as_text(value: str, field: str) -> str:
    if len(value) > LONGEST:
        raise _Wrong(f"{field}: a text of {len(value):,} characters, and {LONGEST:,} are compared at most")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ord(value[error.start])
            raise _Wrong(f"{field}: the character U+{half:04X} is half of a surrogate pair, and no text") from None
    return value


def _files(folder: Path, benchmark: str) -> dict[str, Path]:
    """A benchmark's log (`EVAL`) and summary (`SUMMARY`), those that there are."""
    files = {kind: folder / f"{benchmark}_{kind}.json" for kind in ("EVAL", "SUMMARY")}
    return {kind: file for kind, file in files.items() if os.path.lexists(file)}


def number(value: Any, where: str) -> float | None:
    """A number of the log, which may be NaN or infinite; None for null.

    Raises:
        TaskError: it is no number, or larger than any float; `where` is in front of the message.
    """
    try:
        return None if value is None else _as_number(value, "", loss=False)
    except _Wrong as error:
        raise TaskError(f"{where}{error}. Evaluate again") from None


def _as_number(value: Any, field: str, loss: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong(f"{field}: {value!r:.60} is not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if math.isinf(found) and all(value is not written for written in WRITTEN.values()):
        raise _Wrong(f"{field}: larger than any float")
    if loss and (found < LEAST or MOST < found < math.inf):
        raise _Wrong(f"{field}: {found:g} is no average loss of a token, which is from 0 to {MOST:g}")
    return found
