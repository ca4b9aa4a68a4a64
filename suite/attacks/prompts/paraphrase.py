"""Paraphrase: the same question in other words. What was forgotten in one wording may be known in another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Literal

from suite.attacks.base import AttackContext, AttackSettings
from suite.attacks.prompts.base import QuestionEdit
from suite.config.numbers import Whole
from tasks.task import Item, Probe


class Paraphrase(QuestionEdit["Paraphrase.Settings"]):
    """The question in another wording from the task. Questions without one are not changed."""

    source = "Patil et al. 2024, arXiv 2309.17410"

    class Settings(AttackSettings):
        """which: index of the wording, from 0."""

        name: Literal["paraphrase"] = "paraphrase"
        which: Whole = 0

    @property
    def unmet_requirement(self) -> str:
        which = self.settings.which
        return f"has {which + 1} other wordings. " + ("Use a smaller which" if which else "Leave this attack out")

    def applies_to(self, item: Item, probe: Probe) -> bool:
        return len(item.rewordings) > self.settings.which

    def rewritten(self, item: Item, probe: Probe, context: AttackContext) -> Item:
        return replace(item, prompt=item.rewordings[self.settings.which])

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        words = json.dumps([[item.rewordings for item in probe.items] for probe in probes], ensure_ascii=False)
        return {"rewordings": hashlib.sha256(words.encode()).hexdigest()}
