"""The interface of an attack: it takes a subject and yields attacked subjects, one per point of the attack's curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from suite.config import settings
from suite.models.checkpoints import Checkpoint, EditedCheckpoint, State
from suite.models.encoding import Encoder
from tasks.task import Example, Probe, Split, Task, attack_name, examples_digest

if TYPE_CHECKING:
    import torch

    from suite.engines import Engine
    from suite.models.causal_lm import CausalLM


class Access(StrEnum):
    """The access that an attack needs."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    """The attacker has the model and changes its weights."""
    PROMPTS = "prompts"
    """The attacker has an interface to the model and changes the prompts."""
    WHITE_BOX = "white-box"
    """The attacker looks inside the model: a diagnostic rather than an attack."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model and its probes. An attack may change either."""

    checkpoint: Checkpoint
    probes: tuple[Probe, ...]

    @property
    def split(self) -> Split:
        """The split of the probes: a subject is measured on one split at a time."""
        return self.probes[0].split


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use besides the subject.

    Attributes:
        engine: generates the subject's answers, for attacks that depend on them.
        encoder: turns text into ids with the subject's tokenizer and template.
        task: the source of the texts and questions that an attacker may have.
        seed: seed of all of the attack's random draws, combined with the attack's own seed.
        device: device on which weights are edited and trained.
        target: the model before unlearning, for attackers that have it.
        target_key: identifies the target's weights in stage keys.
        block: tokens per block of running text, as in the subject's training; None if each text was an example of its
            own.
        gradient_checkpointing: whether attacks that train save memory (see `suite.models.gradient_checkpointing`).
    """

    engine: Engine
    encoder: Encoder
    task: Task
    seed: int
    device: torch.device
    target: Checkpoint | None = None
    target_key: str = ""
    block: int | None = None
    gradient_checkpointing: bool = False

    @cached_property
    def forget(self) -> tuple[Example, ...]:
        """The forget texts of all requests."""
        return self.task.forget_examples()

    @property
    def retain(self) -> tuple[Example, ...]:
        """The retain texts."""
        return self.task.retain

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the texts that an attacker may have."""
        return examples_digest((*self.forget, *self.retain))


class AttackSettings(settings.Settings):
    """Settings that every attack has: a name, a literal in those of each one that is registered."""

    name: str = ""


S = TypeVar("S", bound=AttackSettings)


class Attack(Generic[S]):
    """One attack with its budget. Attacks evaluate one's own model."""

    Settings: type[S]
    access: ClassVar[Access]
    source: ClassVar[str] = ""
    """Where the attack comes from: paper and section."""
    needs_target: ClassVar[bool] = False
    """Whether the attacker has the model before unlearning."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings with which it does all that it does within a second on a small model. Tests make it with them."""
    version: ClassVar[int] = 1
    """Increased when the attack computes something else than before; measurements of older versions are kept."""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        """Name and budget, as in every row of the board."""
        return attack_name(self.settings.changed())

    def version_for(self, architecture: Path) -> int:
        """The version for models of an architecture, a folder: larger where only theirs are attacked otherwise now."""
        return self.version

    @property
    def points(self) -> tuple[int, ...]:
        """The points of the curve, known before the attack runs; (0,) for an attack without a curve."""
        return (0,)

    @property
    def changes_nothing(self) -> bool:
        """Whether the settings stand for no change at all."""
        return False

    @property
    def random(self) -> bool:
        """Whether the outcome depends on the attack's seed."""
        return "seed" in type(self.settings).model_fields and not self.changes_nothing

    def with_seed(self, seed: int) -> Self:
        """The same attack with another seed, which its name tells. Only for one that is random."""
        return type(self)(self.settings.model_copy(update={"seed": seed}))

    def check(self, task: Task, split: Split) -> None:
        """Check that the attack can be carried out on a task, before anything is computed.

        Raises:
            UnsuitableError: there are too few texts, ...; the message says what to change.
            NotInstalledError, MissingDataError, ...: what it needs is not here.
        """

    def check_model(self, model: CausalLM) -> None:
        """Check that the attack can be carried out on models of an architecture, before anything is computed.

        Args:
            model: one of them; its weights may be on the meta device.

        Raises:
            UnsuitableError: it does not support the architecture; the message says what to change.
        """

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        """What the outcome depends on besides settings, seed, the attacker's texts and the probes, for stage keys."""
        return {}

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        """Yield attacked subjects by point, in the order of `points`. At zero strength, yield the subject itself.

        Raises:
            UnsuitableError: the attack does not support this subject.
        """
        raise NotImplementedError


class WeightEdit(Attack[S]):
    """An attack that is one edit of the weights, made when the weights are loaded."""

    access = Access.WEIGHTS

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        """The weights after the attack, not edited in place. Unchanged tensors may be returned as they are."""
        raise NotImplementedError

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        if self.changes_nothing:
            yield 0, subject
            return
        checkpoint = EditedCheckpoint(subject.checkpoint, lambda state: self.edited(state, subject, context), self.name)
        yield 0, Subject(checkpoint, subject.probes)


class PromptEdit(Attack[S]):
    """An attack that rewrites each prompt independently of the others."""

    access = Access.PROMPTS

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        """The probe with its items as the attack rewrites them; items keep their ids and their order."""
        raise NotImplementedError

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        yield 0, Subject(subject.checkpoint, tuple(self.edited_probe(probe, context) for probe in subject.probes))
