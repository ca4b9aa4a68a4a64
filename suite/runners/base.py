"""One trial as every runner runs it: under a lease, with failures caught, and a serializable outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboard.board.files import BoardError
from leaderboard.ranking.headlines import Headlines
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.evaluation.trial_rows import failed_row
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec
from suite.storage.store import Store
from suite.trials.run import TrialResult, run_trial
from tasks.task import Split


@dataclass(frozen=True)
class TrialJob:
    """A trial, how it is measured and where its results go."""

    spec: TrialSpec
    measure: MeasureSpec
    runtime: RuntimeSpec
    store: Path


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        headlines: F, R, U and score by split, null where they cannot be computed.
        computed, reused: numbers of stages, by kind.
        reason: why the status is not ok, or which attacks failed.
    """

    trial: str
    label: str
    status: str
    reason: str | None
    headlines: dict[str, dict[str, float | None]]
    computed: dict[str, int]
    reused: dict[str, int]
    seconds: float

    def objective(self, name: str) -> float:
        """A headline on dev for a search to maximise: always finite; 0, the worst value, where it is null."""
        value = self.headlines.get(str(Split.DEV), {}).get(name)
        return 0.0 if value is None else value


OnOutcome = Callable[[Outcome], None]
"""Called with each outcome as it becomes known."""


def run_one(job: TrialJob, on_stage: Callable[[str], None] = lambda stage: None) -> Outcome:
    """Run a job. A failure becomes its outcome; only errors that would also stop every later trial are raised.

    Raises:
        SpecError: the spec itself is wrong.
        BoardError: the board cannot be written to.
    """
    started = time.perf_counter()
    store = Store(job.store)
    result: TrialResult | None = None
    reason: str | None = None
    try:
        with store.stages.leases.hold(lease_name(job.spec)):
            result = run_trial(
                job.spec,
                store,
                measure=job.measure,
                runtime=job.runtime,
                on_stage=lambda stage, rows: on_stage(stage),
            )
    except (SpecError, BoardError):
        raise
    except Exception as error:  # a failed trial becomes a row; the other trials go on
        reason = f"{type(error).__name__}: {error}"
        with suppress(BoardError):
            store.board.append("trials", [failed_row(job.spec, error)])
    return Outcome(
        trial=job.spec.id,
        label=label(job.spec),
        status=result.row["status"] if result else "failed",
        reason="; ".join(filter(None, [result.row["reason"], *result.failures])) or None if result else reason,
        headlines={str(s): _numbers(result.headlines(s)) for s in job.measure.splits} if result else {},
        computed={kind: len(keys) for kind, keys in store.stages.computed.items()},
        reused={kind: len(keys) for kind, keys in store.stages.reused.items()},
        seconds=time.perf_counter() - started,
    )


def refused(reason: str) -> Outcome:
    """The outcome of a search's draw that is not a valid trial."""
    return Outcome("", "not a trial", "refused", reason, {}, {}, {}, 0.0)


def lease_name(spec: TrialSpec) -> str:
    return f"trial-{spec.id}"


def label(spec: TrialSpec) -> str:
    """A short label of a trial for progress and tables."""
    smoothing = "" if spec.smoothing.name == "none" else f" · {spec.smoothing.name}"
    return f"{spec.optimizer.name} · {spec.objective.name}{smoothing} · seed {spec.seed}"


def _numbers(headlines: Headlines) -> dict[str, Any]:
    return {name: getattr(headlines, name).value for name in ("forgetting", "robustness", "utility", "score")}
