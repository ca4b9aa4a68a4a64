"""What attacks on the prompts share: which questions they apply to, and the check that prompts fit the model's context.

The scored answers, the ids and the order of items stay the same, so that numbers compare with those without an attack.
Items that an attack does not apply to keep their prompts: running text by default, and questions that would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from suite.attacks.base import AttackContext, AttackSettings, PromptEdit, Subject
from suite.config.errors import UnsuitableError
from suite.models.checkpoints import context_of
from suite.models.encoding import Encoder
from tasks.task import Item, Probe, ProbeKind, Split, Style, Task

S = TypeVar("S", bound=AttackSettings)


class QuestionEdit(PromptEdit[S]):
    """An attack that rewrites each question, forget and retain questions alike."""

    @property
    def unmet_requirement(self) -> str:
        """End of the error message for a task without a question that the attack applies to; says what to do."""
        return "is put as a question: they are running text. Leave this attack out"

    def applies_to(self, item: Item, probe: Probe) -> bool:
        """Whether the attack changes the prompt of this item."""
        return item.style is Style.QUESTION

    def rewritten(self, item: Item, probe: Probe, context: AttackContext) -> Item:
        """The attack's version of an item that it applies to."""
        raise NotImplementedError

    def check(self, task: Task, split: Split) -> None:
        items = ((item, probe) for probe in task.probes_behind(task.knowledge, split) for item in probe.items)
        if not any(self.applies_to(item, probe) for item, probe in items):
            raise UnsuitableError(
                f"attacks: {self.name}: no forget headline of {task.name} on {split} {self.unmet_requirement}"
            )

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        items = (self.rewritten(item, probe, context) if self.applies_to(item, probe) else item for item in probe.items)
        return replace(probe, items=tuple(items))

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        limit = context_of(subject.checkpoint.architecture)
        probes = (fitted(probe, self.edited_probe(probe, context), context.encoder, limit) for probe in subject.probes)
        yield 0, Subject(subject.checkpoint, tuple(probes))


def fitted(before: Probe, after: Probe, encoder: Encoder, limit: int | None) -> Probe:
    """The probe after an attack, with all items cut to fit the model; items that cannot fit are left unattacked.

    Args:
        limit: the model's context length in tokens; None where it sets no limit.
    """
    if limit is None:
        return after
    pairs = zip(before.items, after.items, strict=True)
    items = (new if new == old else shortened(new, old, after, encoder, limit) or old for old, new in pairs)
    return replace(after, items=tuple(items))


def shortened(item: Item, before: Item, probe: Probe, encoder: Encoder, limit: int) -> Item | None:
    """The item without the oldest turns that an attack added, until it fits; None if it does not fit without them."""
    while _tokens(item, probe, encoder) > limit:
        if len(item.turns) <= len(before.turns):
            return None
        item = replace(item, turns=item.turns[1:])
    return item


def _tokens(item: Item, probe: Probe, encoder: Encoder) -> int:
    """Tokens of the longest text that the model reads and writes for an item."""
    if probe.kind is ProbeKind.GENERATE:
        return len(encoder.prompt(item)) + probe.max_new_tokens
    answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
    longest = max(len(encoder.answer(item, answer).ids) for answer in answers)
    return min(longest, probe.max_tokens) if probe.max_tokens and item.style is Style.TEXT else longest
