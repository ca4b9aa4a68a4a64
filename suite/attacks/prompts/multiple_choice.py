"""Multiple choice: an open question with lettered options. A model that cannot recall an answer may still recognise it.

The options are the question's own correct and wrong answers, or those of the task's multiple-choice question about the
same fact. In that case the correct option is worded as there too, so that its wording does not give it away. Where the
task has neither, they are the correct answer and answers to other questions of the probe. The answer's text is scored.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import Field

from suite.attacks.base import AttackContext, AttackSettings
from suite.attacks.prompts.base import QuestionEdit
from suite.config.numbers import Seed
from tasks.task import Item, Probe, ProbeKind, Split, Style, Task


class MultipleChoice(QuestionEdit["MultipleChoice.Settings"]):
    """The question with lettered options, including the correct answer. Running text is not changed."""

    source = "RWKU, arXiv 2406.10890"

    class Settings(AttackSettings):
        """options: number of wrong options, or as many as there are. seed: of their draw and of the order."""

        name: Literal["multiple_choice"] = "multiple_choice"
        options: int = Field(3, ge=1, lt=len(ascii_uppercase))
        seed: Seed = 0

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        choices = _choice_probes(context.task, probes[0].split)
        return {"choices": {probe.name: probe.digest for probe in choices}}

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        choice_items: dict[str, Item] = {}
        for choices in _choice_probes(context.task, probe.split):
            for item in choices.items:
                choice_items.setdefault(item.id, item)
        items = (self._lettered(item, probe, choice_items, context) for item in probe.items)
        return replace(probe, items=tuple(items))

    def _lettered(self, item: Item, probe: Probe, choice_items: Mapping[str, Item], context: AttackContext) -> Item:
        if not self.applies_to(item, probe):
            return item
        correct, wrong = _options(item, probe, choice_items)
        if not wrong:
            return item
        rng = random.Random(f"{context.seed}:{self.settings.seed}:{item.id}")
        options = [correct, *rng.sample(wrong, min(self.settings.options, len(wrong)))]
        rng.shuffle(options)
        lines = [f"{letter}. {option.strip()}" for letter, option in zip(ascii_uppercase, options, strict=False)]
        return replace(item, prompt="\n".join([item.prompt, *lines, "Answer with the text of the right option."]))


def _choice_probes(task: Task, split: Split) -> list[Probe]:
    return [probe for probe in task.probes_of(split) if probe.kind is ProbeKind.CHOICE]


def _options(item: Item, probe: Probe, choice_items: Mapping[str, Item]) -> tuple[str, list[str]]:
    """The correct option and all possible wrong ones."""
    own = item if len(item.answers) > 1 else choice_items.get(item.id, item)
    if len(own.answers) > 1 and own.style is Style.QUESTION:
        wrong = [answer for index, answer in enumerate(own.answers) if index != own.correct]
        return own.reference, wrong
    others = dict.fromkeys(other.reference for other in probe.items)
    return item.reference, [answer for answer in others if answer != item.reference]
