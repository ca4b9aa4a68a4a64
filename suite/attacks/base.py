"""What an attack is: a subject goes in, attacked subjects come out, one per point of the attack's curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from suite.config import settings
from suite.models.checkpoints import Checkpoint, EditedCheckpoint, State
from suite.models.encoding import Encoder
from tasks.task import Example, Probe, Split, Task, attack_name, examples_digest

if TYPE_CHECKING:
    import torch

    from suite.engines import Engine


class Access(StrEnum):
    """What an attacker has to have for an attack."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    """The model itself: its weights are changed."""
    PROMPTS = "prompts"
    """An interface: the questions are put in another way."""
    WHITE_BOX = "white-box"
    """The model itself, to look inside: a diagnostic rather than an attack."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model, and the questions that it is asked. An attack may change either."""

    checkpoint: Checkpoint
    probes: tuple[Probe, ...]

    @property
    def split(self) -> Split:
        """The split that is asked: a subject is asked one at a time."""
        return self.probes[0].split


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use besides the subject.

    Attributes:
        engine: asks the subject, for attacks that depend on its answers.
        encoder: text to ids with the subject's tokenizer and template.
        task: its texts and questions are what an attacker may hold.
        seed: of everything the attack draws, mixed with the attack's own.
        device: where weights are worked on.
        target: the model before unlearning, for attackers that have it.
        target_key: what the target's weights follow from, for keys.
        block: tokens of a block of running text, as the subject was taught it; None where texts are taught one by one.
        gradient_checkpointing: whether attacks that train are to save memory
            (see `suite.models.gradient_checkpointing`).
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
        """SHA-256 of the texts that an attacker may hold."""
        return examples_digest((*self.forget, *self.retain))


class AttackSettings(settings.Settings):
    """Settings that every attack has: none but its name."""


class Attack:
    """One attack with its budget. Attacks are evaluation of one's own model."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    access: ClassVar[Access]
    source: ClassVar[str] = ""
    """Where the attack comes from: paper and section."""
    needs_target: ClassVar[bool] = False
    """Whether the attacker has the model before unlearning."""
    version: ClassVar[int] = 1
    """Raised when the attack computes something else than before; measurements under the old number stay."""

    def __init__(self, settings: AttackSettings) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        """Name and budget, as in every row."""
        return attack_name(self.settings.changed())

    @property
    def points(self) -> tuple[int, ...]:
        """The points of the curve, known before the attack runs; (0,) for an attack without a curve."""
        return (0,)

    def check(self, task: Task, split: Split) -> None:
        """See that the attack can be carried out on a task, before anything is computed.

        Raises:
            SpecError: too few texts, a package that is not installed, ...; and what to change.
        """

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        """For stage keys: what the outcome depends on besides settings, seed, the attacker's texts and questions."""
        return {}

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        """Attacked subjects by point, in the order of `points`. Without strength, the subject itself.

        Raises:
            SpecError: the subject is one that this attack does not go with.
        """
        raise NotImplementedError


class WeightEdit(Attack):
    """An attack that is one edit of the weights, made when they are asked for."""

    access = Access.WEIGHTS

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        """The weights after the attack; tensors that are given back as they are were not touched. Not in place."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether the settings ask for no change at all."""
        return False

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        if self.idle:
            yield 0, subject
            return
        checkpoint = EditedCheckpoint(subject.checkpoint, lambda state: self.edited(state, subject, context), self.name)
        yield 0, Subject(checkpoint, subject.probes)


class PromptEdit(Attack):
    """An attack that puts the questions in another way, each by itself."""

    access = Access.PROMPTS

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        """The probe with its questions as the attack puts them; items keep their ids and their order."""
        raise NotImplementedError

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        yield 0, Subject(subject.checkpoint, tuple(self.edited_probe(probe, context) for probe in subject.probes))
