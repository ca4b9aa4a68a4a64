"""What attacks on the questions have in common: which questions they reach, and that what they ask fits the model.

The answer that is scored stays as it was, and so do ids and order: numbers compare with those without attack. What an
attack does not reach is asked as before: running text, where it says nothing else, and questions that would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from suite.attacks.base import AttackContext, PromptEdit, Subject
from suite.config.errors import SpecError
from suite.models.checkpoints import context_of
from suite.models.encoding import Encoder
from tasks.task import Item, Probe, ProbeKind, Split, Style, Task


class QuestionEdit(PromptEdit):
    """An attack that puts each question in another way, forget and retain questions alike."""

    @property
    def lacking(self) -> str:
        """What no forget question of a task that is refused is or has; and what to do."""
        return "is put as a question: they are running text. Leave this attack out"

    def reaches(self, item: Item, probe: Probe) -> bool:
        """Whether the attack changes how this is asked."""
        return item.style is Style.QUESTION

    def put(self, item: Item, probe: Probe, context: AttackContext) -> Item:
        """A question that the attack reaches, as the attack puts it."""
        raise NotImplementedError

    def check(self, task: Task, split: Split) -> None:
        asked = ((item, probe) for probe in task.probes_behind(task.knowledge, split) for item in probe.items)
        if not any(self.reaches(*one) for one in asked):
            raise SpecError(f"attacks: {self.name}: no forget headline of {task.name} on {split} {self.lacking}")

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        items = (self.put(item, probe, context) if self.reaches(item, probe) else item for item in probe.items)
        return replace(probe, items=tuple(items))

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        room = context_of(subject.checkpoint.architecture)
        probes = (fitted(probe, self.edited_probe(probe, context), context.encoder, room) for probe in subject.probes)
        yield 0, Subject(subject.checkpoint, tuple(probes))


def fitted(before: Probe, after: Probe, encoder: Encoder, room: int | None) -> Probe:
    """The probe as it is after an attack, with items that fit; those that cannot are as they were before.

    Args:
        room: longest text that the model reads, in tokens; None where it sets no limit.
    """
    if room is None:
        return after
    pairs = zip(before.items, after.items, strict=True)
    items = (new if new == old else shortened(new, old, after, encoder, room) or old for old, new in pairs)
    return replace(after, items=tuple(items))


def shortened(item: Item, before: Item, probe: Probe, encoder: Encoder, room: int) -> Item | None:
    """The item without the oldest turns that an attack has added, until it fits; None where it does not even then."""
    while _tokens(item, probe, encoder) > room:
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
