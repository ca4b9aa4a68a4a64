"""What an attack is: a subject goes in, attacked subjects come out, one per point of the attack's curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from suite import settings
from suite.checkpoints import Checkpoint
from suite.text import Encoder
from tasks.task import Example, Probe, attack_name, examples_digest

if TYPE_CHECKING:
    import torch

    from suite.engines import Engine


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a model, and the questions that it is asked. An attack may change either."""

    checkpoint: Checkpoint
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use besides the subject.

    Attributes:
        engine: asks the subject, for attacks that depend on its answers.
        encoder: text to ids with the subject's tokenizer and template.
        forget, retain: training text that an attacker may hold.
        seed: of everything the attack draws, mixed with the attack's own.
        device: where weights are worked on.
        block: tokens of a block of running text, as the subject was taught it; None where texts are taught one by one.
        gradient_checkpointing: whether attacks that train are to save memory (see `suite.recompute`).
    """

    engine: Engine
    encoder: Encoder
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    seed: int
    device: torch.device
    block: int | None = None
    gradient_checkpointing: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the texts that an attacker may hold."""
        return examples_digest((*self.forget, *self.retain))


class AttackSettings(settings.Settings):
    """Settings that every attack has: none but its name."""


class Attack:
    """One attack with its budget. Attacks are evaluation of one's own model."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
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

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        """Attacked subjects by point, in the order of `points`."""
        raise NotImplementedError
