"""The engine protocol: jobs go in, and their results come out as they finish.

`EngineKind` is what is known of an engine before there is one: how it is built, and what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from pydantic import field_validator

from suite.cluster.placement import PoolResources
from suite.config.errors import SpecError
from suite.config.numbers import Count
from suite.config.settings import Settings
from suite.models.checkpoints import Checkpoint, Heads
from suite.models.encoding import Encoder
from tasks.plain_text import shown
from tasks.task import Probe, Sample

if TYPE_CHECKING:
    from suite.engines.agreement import ComparableEngine

S = TypeVar("S", bound=Settings)

SECTION = re.compile(r"[a-z][a-z0-9_-]*")
"""Names of sections of `measure` that an engine may have."""
RESERVED = ("also", "attack_seeds", "attacks", "landscape", "limit", "match", "nulls", "splits")
"""Settings of `measure` that are not about engines (`suite.spec.measure`), so no engine's section has such a name."""


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


class EngineSettings(Settings):
    """Which engine runs the probes, and how. In a spec these settings stand in the section `measure`.

    An engine's own settings stand in a section with its name (`suite.engines.settings` adds the sections).

    Attributes:
        engine: an entry of `ENGINES` (`regrade ls engines`).
        batch_tokens: positions per batch of the transformers engine, padding included.
    """

    engine: str = "transformers"
    batch_tokens: Count = 4096

    @field_validator("engine", mode="before")
    @classmethod
    def _known_engine(cls, engine: Any) -> Any:
        from suite.engines import ENGINES

        if not isinstance(engine, str) or not engine:
            raise ValueError(f"the name of an engine is expected, not {shown(engine)} (allowed: {', '.join(ENGINES)})")
        try:
            ENGINES[engine]
        except SpecError as error:
            raise ValueError(str(error).partition(": ")[2]) from None  # without the noun: the key stands there
        return engine

    def own(self, kind: type[S]) -> S:
        """The settings of an engine's own, of the class that it declares; without their `name`."""
        section: S = getattr(self, kind.model_fields["name"].default)
        return section

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        above = next(kind for kind in cls.__mro__[1:] if issubclass(kind, EngineSettings))
        for name, field in above.model_fields.items():
            if cls.model_fields[name].annotation is not field.annotation:
                raise SpecError(f"engine {name}: has settings, and {name} is another setting here. Name it otherwise")


def no_section(name: str) -> str | None:
    """Why an engine of this name can have no settings of its own; None if it can."""
    if SECTION.fullmatch(name) and name not in {*EngineSettings.model_fields, *dir(EngineSettings), *RESERVED}:
        return None
    return f"has settings, and there can be no section measure.{name}. Name it otherwise"


class EngineKind:
    """An entry of `ENGINES`: what is asked of the class of an engine, before one is built.

    Most engines are their own kind. Where that would import what takes seconds, or is not installed everywhere, the
    kind is a class of its own, and `build` imports the engine.

    Attributes:
        Settings: `name`, a literal, and the settings of its own, in the section `measure.NAME`. One that is called
            `tensor_parallel` is what `--tensor-parallel` sets: GPUs of one engine.
        cross_checked: whether `regrade eval --cross-check` compares it with the transformers engine; then it has
            `build_alone`.
    """

    Settings: type[Settings]
    cross_checked: ClassVar[bool] = False

    @classmethod
    def unusable(cls) -> str | None:
        """Why a class of another package cannot be added; None if it can."""
        return no_section(cls.key()) if len(cls.Settings.model_fields) > 1 else None

    @classmethod
    def key(cls) -> str:
        """Its name in `measure.engine`."""
        return str(cls.Settings.model_fields["name"].default)

    @classmethod
    def build(cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Engine:
        """An engine for models of this dtype.

        Args:
            device: the device on which this process computes.

        Raises:
            SpecError: it cannot be used here.
        """
        raise NotImplementedError

    @classmethod
    def build_alone(
        cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device
    ) -> ComparableEngine:
        """An engine that leaves nothing to another engine, to be compared with one."""
        raise NotImplementedError

    @classmethod
    def check_usable(cls) -> None:
        """Check that the engine can run on this machine.

        Raises:
            SpecError: it cannot: what is missing, and how to get it.
        """

    @classmethod
    def check_heads(cls, settings: EngineSettings, heads: Heads, where: str) -> None:
        """Check that the engine can run a model's attention, before it is started in vain.

        Args:
            where: the setting that names the model, for the message.

        Raises:
            SpecError: it cannot.
        """

    @classmethod
    def pool_resources(cls, settings: EngineSettings) -> PoolResources:
        """The resources that it needs beside the trials; by default none, for an engine in the trial's process.

        Raises:
            SpecError: it is not installed.
        """
        return PoolResources(engines=0)

    @classmethod
    def open_pool(cls, pool: PoolResources, on_wait: Callable[[], None]) -> None:
        """Reserve the resources of its pool on the connected cluster, before trials take them.

        Args:
            on_wait: called once if they are not free.
        """

    @classmethod
    def finding(cls) -> tuple[str, str]:
        """For `regrade doctor`: the version that is installed, and how it is chosen or why it cannot be used."""
        return "there", f"measure.engine={cls.key()}"


def ask(engine: Engine, checkpoint: Checkpoint, probes: tuple[Probe, ...]) -> Mapping[str, tuple[Sample, ...]]:
    """Run probes on one checkpoint and return its samples, by probe.

    Raises:
        CheckpointError, ...: the error of the job, if it failed.
    """
    (result,) = engine.submit([Job("only", checkpoint, probes)])
    if result.error is not None:
        raise result.error
    return result.samples
