"""What an engine is: jobs go in, samples come out as they finish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from suite.models.checkpoints import Checkpoint
from tasks.task import Probe, Sample


@dataclass(frozen=True, slots=True)
class Job:
    """A checkpoint and what it is asked. `key` names the job in its evaluation."""

    key: str
    checkpoint: Checkpoint
    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class JobResult:
    """The samples of a job, by probe, each in the order of the probe's items.

    Attributes:
        error: what went wrong with this job, in place of samples: a checkpoint that cannot be read or does not fit its
            architecture, memory that does not suffice, ...
    """

    key: str
    samples: Mapping[str, tuple[Sample, ...]]
    error: Exception | None = None


class Engine(Protocol):
    """Answers probes. Answers do not depend on which checkpoint came before."""

    name: str
    """Engine and dtype, as in every row. Numbers of engines with different names are not ranked together."""

    version: str

    dtype: str

    batch_invariant: bool
    """Whether an answer is the same to the last bit whatever else is in the batch."""

    def identity(self) -> dict[str, Any]:
        """Everything about the engine that its numbers depend on, for stage keys."""
        ...

    def submit(self, jobs: Iterable[Job]) -> Iterator[JobResult]:
        """Evaluations as they finish, in any order. Jobs are drawn as the engine has room for them.

        What goes wrong with one job is said in its evaluation, and the others go on.
        """
        ...


def ask(engine: Engine, checkpoint: Checkpoint, probes: tuple[Probe, ...]) -> Mapping[str, tuple[Sample, ...]]:
    """What one checkpoint answers, by probe.

    Raises:
        CheckpointError, ...: whatever keeps the engine from asking it.
    """
    (answer,) = engine.submit([Job("asked", checkpoint, probes)])
    if answer.error is not None:
        raise answer.error
    return answer.samples
