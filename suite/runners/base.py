"""One trial as every runner runs it: under a lease, with failures caught, and a serializable outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leaderboard.board.schema import Status
from leaderboard.ranking.headlines import Headlines
from suite.config.runtime import RuntimeSpec
from suite.evaluation.trial_rows import failed_row
from suite.spec.measure import MeasureSpec
from suite.spec.random_change import AnyTrial, RandomChange
from suite.storage.stages import StageStore
from suite.storage.store import Store
from suite.training.unlearning import StoppedByScheduler
from suite.trials.on_dev import Report
from suite.trials.run import run_trial
from tasks.task import Split

PRUNED = "pruned"
"""Status of a trial that a scheduler stopped; it is on no board."""


@dataclass(frozen=True)
class TrialJob:
    """A trial, how it is measured and where its results go.

    Attributes:
        search: the search that it is a part of, as in the column `search`; None for a trial by itself.
    """

    spec: AnyTrial
    measure: MeasureSpec
    runtime: RuntimeSpec
    store: Path
    search: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        headlines: F, R, U and score by split, null where they cannot be computed.
        computed, reused: numbers of stages, by kind.
        reason: why the status is not ok, or which attacks failed.
        null: whether it was a null trial.
    """

    trial: str
    label: str
    status: str
    reason: str | None
    headlines: dict[str, dict[str, float | None]] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    reused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    null: bool = False

    def objective(self, name: str) -> float:
        """A headline on dev for a search to maximise: always finite; 0, the worst value, where it is null."""
        value = self.headlines.get(str(Split.DEV), {}).get(name)
        return 0.0 if value is None else value


OnOutcome = Callable[[Outcome], None]
"""Called with each outcome as it becomes known."""


def run_one(
    job: TrialJob, on_stage: Callable[[str], None] = lambda stage: None, report: Report | None = None
) -> Outcome:
    """Run a job. Whatever goes wrong in it becomes its row and its outcome, so that the other trials go on.

    Args:
        report: called with the numbers on dev at each intermediate checkpoint; a true answer stops the trial. Then it
            has an outcome and no row, and goes on from there when it is run again.

    Raises:
        KeyboardInterrupt: a signal stopped the process.
    """
    started = time.perf_counter()
    stages: StageStore | None = None
    try:
        store = Store(job.store)
        stages = store.stages
        with stages.leases.hold(lease_name(job.spec)):
            result = run_trial(
                job.spec,
                store,
                measure=job.measure,
                runtime=job.runtime,
                search=job.search,
                on_stage=lambda stage, rows: on_stage(stage),
                report=report,
            )
        outcome = Outcome(
            trial=job.spec.id,
            label=job.spec.label,
            status=result.row["status"],
            reason="; ".join(filter(None, [result.row["reason"], *result.failures])) or None,
            headlines={str(split): _numbers(result.headlines(split)) for split in job.measure.attacked},
        )
    except KeyboardInterrupt:
        raise
    except StoppedByScheduler as stopped:
        outcome = pruned(job.spec.id, job.spec.label, str(stopped))
    except BaseException as error:  # SystemExit of a library and panics of extensions in Rust are no `Exception`
        outcome = failed(job, error)
    return replace(
        outcome,
        computed={kind: len(keys) for kind, keys in stages.computed.items()} if stages else {},
        reused={kind: len(keys) for kind, keys in stages.reused.items()} if stages else {},
        seconds=time.perf_counter() - started,
        null=isinstance(job.spec, RandomChange),
    )


def failed(job: TrialJob, error: BaseException) -> Outcome:
    """The outcome of a trial that ended in an error, which is put on the board as its row."""
    row = failed_row(job.spec, error) | {"search": job.search}
    reason = row["reason"]
    try:
        Store(job.store).board.append("trials", [row])
    except Exception as unwritten:
        reason += f". Its row is not on the board: {unwritten}"
    return Outcome(job.spec.id, job.spec.label, str(Status.FAILED), reason, null=isinstance(job.spec, RandomChange))


def pruned(trial: str, label: str, reason: str) -> Outcome:
    """The outcome of a trial that a scheduler stopped at an intermediate checkpoint."""
    return Outcome(trial, label, PRUNED, reason)


def refused(reason: str) -> Outcome:
    """The outcome of a search's draw that is not a valid trial."""
    return Outcome("", "not a trial", "refused", reason)


def lease_name(spec: AnyTrial) -> str:
    return f"trial-{spec.id}"


def _numbers(headlines: Headlines) -> dict[str, Any]:
    return {name: getattr(headlines, name).value for name in ("forgetting", "robustness", "utility", "score")}
