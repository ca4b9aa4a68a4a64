"""Several turns: the question comes after others, which the model has answered itself (arXiv 2603.00823).

After itself: the question is asked, and then put again with doubts about the answer. After related questions: the talk
is of facts that were to be kept, and comes to the one that was not. Beside the scores stands how many answers stay what
they were, the summary `unchanged_answers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from suite.attacks.base import AttackContext, AttackSettings, Subject
from suite.attacks.prompts.base import QuestionEdit, fitted, shortened
from suite.attacks.prompts.neighbours import neighbours
from suite.config.errors import SpecError
from suite.engines.base import ask
from suite.models.checkpoints import context_of
from tasks.task import Item, Probe, ProbeKind, Split, Style, Subset, Task, Turn

AGAIN = "Are you sure about that? Think it over and answer once more. {}"
"""Puts the question again, so that it is still there when the turns before it did not fit."""

_Asked = tuple[str, tuple[Turn, ...]]
"""A question and what was said before it."""


class MultiTurn(QuestionEdit):
    """The question after turns that the model answered itself: it reconsiders, or has talked of related facts.

    The model's answers are greedy, and each related question is answered by itself. Running text stays as it is. Turns
    that do not fit the model are left out, the oldest first.
    """

    source = "arXiv 2603.00823"

    class Settings(AttackSettings):
        """after: `self` asks to reconsider, `rounds` times; `related` speaks of `turns` retained facts before.

        rounds: each a point of the curve. max_new_tokens: of the model's own answers.
        """

        name: Literal["multi_turn"] = "multi_turn"
        after: Literal["self", "related"]
        rounds: int | None = Field(None, ge=0)
        turns: int | None = Field(None, ge=0)
        max_new_tokens: int = Field(64, ge=1)

        @model_validator(mode="after")
        def _its_own_number(self) -> MultiTurn.Settings:
            own, other = ("rounds", "turns") if self.after == "self" else ("turns", "rounds")
            if getattr(self, own) is None or getattr(self, other) is not None:
                raise ValueError(f"after={self.after} takes {own}, which has no default, and no {other}")
            return self

    @property
    def points(self) -> tuple[int, ...]:
        return tuple(range(1, self.settings.rounds + 1)) if self.settings.rounds else (0,)

    def check(self, task: Task, split: Split) -> None:
        super().check(task, split)
        turns, most = self.settings.turns or 0, sum(text.style is Style.QUESTION for text in task.retain)
        if turns > most:
            raise SpecError(f"attacks: {self.name}: {task.name} has {most} retain questions. Use so many turns at most")

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        if self.settings.turns:
            yield 0, self._after_related(subject, context)
        elif self.settings.rounds:
            yield from self._after_itself(subject, context)
        else:
            yield 0, subject

    def _after_itself(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        room, now = context_of(subject.checkpoint.architecture), subject.probes
        for point in self.points:
            asked = (_asked(item) for probe in now for item in probe.items if self.reaches(item, probe))
            answers = self._answers(asked, subject, context)
            again = (self._again(first, probe, answers) for first, probe in zip(subject.probes, now, strict=True))
            pairs = zip(subject.probes, again, strict=True)
            now = tuple(fitted(first, probe, context.encoder, room) for first, probe in pairs)
            yield point, Subject(subject.checkpoint, now)

    def _again(self, first: Probe, now: Probe, answers: Mapping[_Asked, str]) -> Probe:
        """The questions of a round put again, each after what was said to it."""
        items = [
            replace(item, prompt=AGAIN.format(before.prompt), turns=(*item.turns, Turn(item.prompt, said)))
            if self.reaches(item, now) and (said := answers.get(_asked(item))) is not None
            else item
            for before, item in zip(first.items, now.items, strict=True)
        ]
        return replace(now, items=tuple(items))

    def _after_related(self, subject: Subject, context: AttackContext) -> Subject:
        room, texts = context_of(subject.checkpoint.architecture), neighbours(context.retain)
        near = {
            item: texts.of(item, self.settings.turns)
            for probe in subject.probes
            for item in probe.items
            if self.reaches(item, probe)
        }
        answers = self._answers(((text.prompt, ()) for some in near.values() for text in some), subject, context)

        def put(item: Item) -> Item:
            asked = [text.prompt for text in near.get(item, ()) if (text.prompt, ()) in answers]
            return replace(item, turns=(*(Turn(prompt, answers[prompt, ()]) for prompt in asked), *item.turns))

        probes = (replace(probe, items=tuple(map(put, probe.items))) for probe in subject.probes)
        pairs = zip(subject.probes, probes, strict=True)
        return replace(subject, probes=tuple(fitted(first, probe, context.encoder, room) for first, probe in pairs))

    def _answers(self, asked: Iterable[_Asked], subject: Subject, context: AttackContext) -> dict[_Asked, str]:
        """What the subject says to each question, asked once; none to those that do not fit."""
        probe = Probe("asked", Subset.FORGET, subject.split, ProbeKind.GENERATE, (), (), self.settings.max_new_tokens)
        room = context_of(subject.checkpoint.architecture)
        found: list[tuple[_Asked, Item]] = []
        for place, (prompt, turns) in enumerate(dict.fromkeys(asked)):
            alone = Item(str(place), prompt, ("",))
            item = replace(alone, turns=turns)
            if room is None or (item := shortened(item, alone, probe, context.encoder, room)):
                found.append(((prompt, turns), item))
        items = tuple(item for _, item in found)
        samples = ask(context.engine, subject.checkpoint, (replace(probe, items=items),))[probe.name]
        return {one: sample.generated for (one, _), sample in zip(found, samples, strict=True)}


def _asked(item: Item) -> _Asked:
    return item.prompt, item.turns
