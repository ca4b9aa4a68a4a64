"""What happened in each step of an unlearning run: losses, norms, step size, queries, time."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from leaderboard.board.schema import STEPS
from suite.optimizers import Optimizer
from suite.oracle.base import Queries
from suite.oracle.loss import LossOracle

TYPES = {field.name: field.type.value_type for field in STEPS if pa.types.is_list(field.type)}
COLUMNS = tuple(TYPES)
"""What is logged of a step; `STEPS` in `leaderboard/board/schema.py` says what each is."""
FILE = "steps.parquet"
"""Its file in the stage."""
WATCHED = 1 << 20
"""Weights whose change gives the norm of an update: all of a small model, evenly spread ones of a large one, so that
watching neither takes memory nor time."""
RANGE = 10.0
"""A loss or norm of more than this many times its median so far has left its range."""
WATCHED_FOR_RANGE = {
    "forget_loss": "the forget loss",
    "retain_loss": "the retain loss",
    "gradient_norm": "the norm of the gradient",
    "update_norm": "the norm of the step",
}


class StepLog:
    """A row per step.

    `forget_loss` and `retain_loss` are means over what the step evaluated, weighted as in the objective: at the weights
    for a first-order step, at the displaced ones for a zeroth-order step. `gradient_norm` is that of the last gradient,
    or of the zeroth-order estimate. `update_norm` is the L2 norm of the change of the weights, of a model of more than
    a million estimated from so many. `value_queries` and so on count the optimizer's queries so far.
    What a step did not have is null.
    """

    def __init__(self, oracle: LossOracle, optimizer: Optimizer, asked: Queries) -> None:
        self._oracle, self._optimizer, self._asked = oracle, optimizer, asked
        self._rows: list[list[float | None]] = []
        self._unread: list[list[Tensor | float | None]] = []  # a device is not waited for after every step
        total = sum(p.numel() for p in oracle.parameters)
        self._stride = max(1, -(-total // WATCHED))
        self._watched = [p.detach().view(-1)[:: self._stride] for p in oracle.parameters]
        self._share = sum(w.numel() for w in self._watched) / total
        self._before: list[Tensor] = []
        self._lr = 0.0

    def before(self) -> None:
        """A step begins."""
        self._before = [w.clone() for w in self._watched]
        self._lr = self._optimizer.lr

    def after(self, step: int, seconds: float) -> None:
        """It has ended.

        Args:
            step: its number, from 1.
            seconds: since the run began.
        """
        forget, retain, seen = self._oracle.seen.take()
        gradient = self._optimizer.estimate_norm if seen is None else seen
        moved = torch.stack(torch._foreach_norm(torch._foreach_sub(self._watched, self._before))).norm()
        asked = self._asked
        update = moved / math.sqrt(self._share)
        queries = asked.value + asked.directional, asked.gradient, asked.curvature
        self._unread.append([step, forget, retain, gradient, update, self._lr, *queries, seconds])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._rows, self._unread = list(saved["rows"]), []

    def rows(self) -> list[list[float | None]]:
        """Plain numbers; one that is not finite is null."""
        self._rows += [[_plain(value) for value in row] for row in self._unread]
        self._unread.clear()
        return list(self._rows)

    def columns(self) -> dict[str, Sequence[float | None]]:
        """The log, column by column."""
        return dict(zip(COLUMNS, list(zip(*self.rows(), strict=True)) or [()] * len(COLUMNS), strict=True))

    def write(self, path: Path) -> None:
        """The log as Parquet, a column for each of `COLUMNS`."""
        columns = self.columns().values()
        arrays = [pa.array(column, kind) for column, kind in zip(columns, TYPES.values(), strict=True)]
        pq.write_table(pa.table(arrays, names=list(COLUMNS)), path)


def _plain(value: Tensor | float | None) -> float | None:
    number = float(value) if isinstance(value, Tensor) else value
    return number if number is not None and math.isfinite(number) else None


def onset(log: Mapping[str, Sequence[Any]]) -> tuple[int, str] | None:
    """Where a diverged run began to diverge: the step from which on, to the end of the log, a loss or a norm was out of
    its range, and which one; the earliest of all. None where everything was within its range until it was not finite.
    (A step that failed moved by 0, which is not a norm of the run.)
    """
    found = []
    for column, name in WATCHED_FOR_RANGE.items():
        values = [(step, abs(v)) for step, v in zip(log["step"], log[column], strict=True) if v]
        if (first := _out_of_range([v for _, v in values])) is not None:
            found.append((values[first][0], name))
    return min(found, default=None, key=lambda one: one[0])


def _out_of_range(values: Iterable[float]) -> int | None:
    """Index of the first of the last values that all exceed `RANGE` medians of those before them."""
    before: list[float] = []
    first: int | None = None
    for index, value in enumerate(values):
        if before and value > RANGE * before[len(before) // 2]:
            first = index if first is None else first
        else:
            first = None
            insort(before, value)
    return first


def read(path: Path) -> dict[str, Sequence[Any]]:
    """A log that was written, column by column."""
    return pq.read_table(path).to_pydict()
