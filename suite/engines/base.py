"""What an engine is: jobs go in, samples come out as they finish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from suite.checkpoints import Checkpoint
from tasks.task import Probe, Sample


@dataclass(frozen=True, slots=True)
class Job:
    """A checkpoint and what it is asked. `key` names the job in its evaluation."""

    key: str
    checkpoint: Checkpoint
    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The samples of a job, by probe, each in the order of the probe's items."""

    key: str
    samples: Mapping[str, tuple[Sample, ...]]


class Engine(Protocol):
    """Answers probes. Answers do not depend on which checkpoint came before."""

    name: str
    """Engine and dtype, as in every row."""

    version: str

    dtype: str

    def identity(self) -> dict[str, Any]:
        """Everything about the engine that its numbers depend on, for stage keys."""
        ...

    def submit(self, jobs: Iterable[Job]) -> Iterator[Evaluation]:
        """Evaluations as they finish, in any order. Jobs are drawn as the engine has room for them.

        Raises:
            CheckpointError: a checkpoint cannot be read or does not fit its architecture.
        """
        ...
