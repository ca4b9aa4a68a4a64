"""The engine protocol: jobs go in, and their results come out as they finish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from suite.models.checkpoints import Checkpoint
from tasks.task import Probe, Sample


@dataclass(frozen=True, slots=True)
class Job:
    """A checkpoint and the probes to run on it. `key` names the job in its result."""

    key: str
    checkpoint: Checkpoint
    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class JobResult:
    """The samples of a job, by probe, in the order of the probe's items.

    Attributes:
        error: why the job failed, in place of samples: a checkpoint that cannot be read or does not fit its
            architecture, too little memory, ...
    """

    key: str
    samples: Mapping[str, tuple[Sample, ...]]
    error: Exception | None = None


class Engine(Protocol):
    """Runs probes on checkpoints. Results do not depend on which checkpoint came before."""

    name: str
    """Engine and dtype, as stored in every row. Numbers of engines with different names are not ranked together."""

    version: str

    dtype: str

    batch_invariant: bool
    """Whether a result is the same to the last bit whatever else is in the batch."""

    def identity(self) -> dict[str, Any]:
        """Everything about the engine that its numbers depend on, for stage keys."""
        ...

    def submit(self, jobs: Iterable[Job]) -> Iterator[JobResult]:
        """Yield results as they finish, in any order. A job is taken from `jobs` when the engine has capacity for it.

        If one job fails, its result carries the error, and the others go on.
        """
        ...


def ask(engine: Engine, checkpoint: Checkpoint, probes: tuple[Probe, ...]) -> Mapping[str, tuple[Sample, ...]]:
    """Run probes on one checkpoint and return its samples, by probe.

    Raises:
        CheckpointError, ...: the error of the job, if it failed.
    """
    (result,) = engine.submit([Job("only", checkpoint, probes)])
    if result.error is not None:
        raise result.error
    return result.samples
