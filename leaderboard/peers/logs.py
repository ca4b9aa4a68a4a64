"""Reads one evaluation in open-unlearning's format: a log per benchmark, a number per metric, a row per example.

`TOFU_EVAL.json` (or `MUSE_EVAL.json`) maps each metric to its aggregate, `agg_value`, and its rows, `value_by_index`.
`TOFU_SUMMARY.json` repeats some of the aggregates; the others are only in the log. Rows are joined by their index,
never by position: rows that could not be scored are null, and positions shift where they are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasks.task import TaskError

BENCHMARKS = ("TOFU", "MUSE")

Value = TypeVar("Value", float, tuple[float, ...], str)


@dataclass(frozen=True)
class Log:
    """An evaluation's log and summary.

    Attributes:
        benchmark: `TOFU` or `MUSE`.
        file: the log, for messages; the summary where there is no log.
        metrics: the log's entries by metric.
        published: the aggregates by metric, from the summary where it has them; None for one that is null.
        digest: SHA-256 of the content of both files, whatever their formatting.
    """

    benchmark: str
    file: Path
    metrics: Mapping[str, Any]
    published: Mapping[str, float | None]
    digest: str

    @classmethod
    def read(cls, folder: Path) -> Log:
        """The evaluation in a folder.

        Raises:
            TaskError: there is none, or a file is damaged; names file, metric and index.
        """
        if not folder.is_dir():
            raise TaskError(f"{folder}: no such folder. Name the folder that holds TOFU_EVAL.json or MUSE_EVAL.json")
        benchmarks = [name for name in BENCHMARKS if any(_files(folder, name))]
        if len(benchmarks) != 1:
            found = "logs of several benchmarks" if benchmarks else "neither TOFU_EVAL.json nor MUSE_EVAL.json"
            raise TaskError(f"{folder}: {found} here. Name a folder that holds one evaluation")
        log, summary = _files(folder, benchmarks[0])
        metrics, aggregates = (_load(file) if file else {} for file in (log, summary))
        published: dict[str, float | None] = {}
        for name, entry in metrics.items():
            if not isinstance(entry, dict):
                raise TaskError(f"{log}: {name}: not an object with agg_value and value_by_index. Evaluate again")
            if "agg_value" in entry:
                published[name] = _number(entry["agg_value"], f"{log}: {name}: agg_value")
        for name, value in aggregates.items():
            published[name] = _number(value, f"{summary}: {name}")
        content = json.dumps([metrics, aggregates], sort_keys=True)
        return cls(
            benchmark=benchmarks[0],
            file=log or summary,
            metrics=metrics,
            published=published,
            digest=hashlib.sha256(content.encode()).hexdigest(),
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
        return {index: _field(row, field, kind, f"{where}: index {index}") for index, row in rows.items()}

    def _rows(self, metric: str, part: str | None) -> tuple[Mapping[str, Any], str]:
        """A metric's rows by index, and their location for messages."""
        if metric not in self.metrics:
            return {}, str(self.file)
        entry, name = self.metrics[metric], metric
        if part:
            entry, name = entry.get(part), f"{metric}.{part}"
        rows = entry.get("value_by_index") if isinstance(entry, dict) else None
        if not isinstance(rows, dict):
            raise TaskError(f"{self.file}: {name}: value_by_index is missing. Evaluate again, or take the metric out")
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
                        f"{self.file}: {name}: index {missing[0]} is missing, which {other} has ({len(rows)} rows "
                        f"against {len(wanted)}). Evaluate both on the same examples"
                    )


def _field(row: Any, field: str, kind: type[Value], where: str) -> Value | None:
    if row is None:
        return None
    if not isinstance(row, dict) or field not in row:
        raise TaskError(f"{where}: {field} is missing. Evaluate again")
    value, where = row[field], f"{where}: {field}"
    if value is None:
        return None
    if kind is float:
        return _number(value, where)
    if kind is tuple and isinstance(value, list) and None not in value:
        return tuple(_number(one, where) for one in value)
    if kind is str and isinstance(value, str):
        return value
    raise TaskError(f"{where}: {value!r:.60} is not {'text' if kind is str else 'a list of numbers'}. Evaluate again")


def _files(folder: Path, benchmark: str) -> tuple[Path | None, Path | None]:
    """A benchmark's log and summary."""
    files = (folder / f"{benchmark}_{kind}.json" for kind in ("EVAL", "SUMMARY"))
    log, summary = (file if file.is_file() else None for file in files)
    return log, summary


def _load(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise TaskError(f"{file}: damaged ({error}). Copy it again") from None
    if not isinstance(found, dict):
        raise TaskError(f"{file}: not an object of metrics. Name the folder of an evaluation")
    return found


def _number(value: Any, where: str) -> float | None:
    """A number of the log, which may be NaN or infinite; None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TaskError(f"{where}: {value!r} is not a number. Evaluate again")
    try:
        return float(value)
    except OverflowError:
        raise TaskError(f"{where}: larger than any float. Evaluate again") from None
