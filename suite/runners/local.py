"""Trials one after another in this process. Two such processes on one store share the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from suite.runners.base import Outcome, TrialJob, lease_name, run_one
from suite.storage.store import Store

Done = Callable[[Outcome], None]


def run_here(
    jobs: Sequence[TrialJob], done: Done, note: Callable[[TrialJob, str], None] = lambda job, stage: None
) -> None:
    """Run every job. A trial that another process is at work on is left for later, and found done by then."""
    pending = list(jobs)
    while pending:
        leases = Store(pending[0].store).stages.leases
        job = next((job for job in pending if leases.free(lease_name(job.spec))), pending[0])
        pending.remove(job)
        done(run_one(job, lambda stage, job=job: note(job, stage)))
