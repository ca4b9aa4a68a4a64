"""Trials one after another in this process. Two such processes on one store share the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from suite.runners.base import OnOutcome, TrialJob, lease_name, run_one
from suite.storage.store import Store


def run_here(
    jobs: Sequence[TrialJob],
    on_outcome: OnOutcome,
    on_stage: Callable[[TrialJob, str], None] = lambda job, stage: None,
) -> None:
    """Run every job. A trial that another process is running is left for last: its stages are in the store by then."""
    pending = list(jobs)
    while pending:
        leases = Store(pending[0].store).stages.leases
        job = next((job for job in pending if leases.free(lease_name(job.spec))), pending[0])
        pending.remove(job)
        on_outcome(run_one(job, partial(on_stage, job)))
