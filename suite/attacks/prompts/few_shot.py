"""Few-shot prompting: similar facts that the model was to keep come first, as examples, and the question follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from suite.attacks.base import AttackContext, AttackSettings
from suite.attacks.prompts.base import QuestionEdit
from suite.attacks.prompts.neighbours import neighbours
from suite.config.errors import UnsuitableError
from suite.config.numbers import Whole
from tasks.task import Probe, Split, Task, Turn


class FewShot(QuestionEdit["FewShot.Settings"]):
    """The retain texts most similar to the question, with their answers, precede it as earlier turns.

    They have the question's own style: questions before questions, running text before running text. The most similar
    one comes last, so that the least similar ones are dropped if not all fit the model.
    """

    source = "Lynch et al. 2024, arXiv 2402.16835"
    example: ClassVar[Mapping[str, Any]] = {"shots": 2}

    class Settings(AttackSettings):
        """shots: texts before each question."""

        name: Literal["few_shot"] = "few_shot"
        shots: Whole

    def check(self, task: Task, split: Split) -> None:
        styles = {item.style for probe in task.probes_behind(task.knowledge, split) for item in probe.items}
        shots = self.settings.shots
        most = max(sum(text.style is style for text in task.retain) for style in styles)
        if most < shots:
            raise UnsuitableError(
                f"attacks: {self.name}: {task.name} has {most} retain texts in the style of its forget questions on "
                f"{split}. Use so many shots at most"
            )

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        texts, shots = neighbours(context.retain), self.settings.shots
        before = ([Turn(text.prompt, text.answer) for text in texts.of(item, shots)] for item in probe.items)
        items = (replace(item, turns=(*turns, *item.turns)) for item, turns in zip(probe.items, before, strict=True))
        return replace(probe, items=tuple(items))
