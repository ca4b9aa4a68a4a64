"""Prefilling: the beginning of the model's response is given, and the model only continues it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from suite.attacks.base import AttackContext, AttackSettings
from suite.attacks.prompts.base import QuestionEdit
from suite.config.numbers import Whole
from tasks.task import Item, Probe, ProbeKind, Style


class Prefill(QuestionEdit["Prefill.Settings"]):
    """The beginning of the response is given: the first words of the correct answer, or a fixed text.

    With `words` only the rest of the answer is scored, and it is the reference of the sample: numbers compare between
    models under the same attack, but not with those without it. Running text is also continued from the later position.
    Questions with several answers are not changed, since the beginning of the correct one would reveal it. With `text`
    the whole answer is scored, after the text; running text is not changed.
    """

    source = "Andriushchenko et al. 2025, arXiv 2404.02151"
    example: ClassVar[Mapping[str, Any]] = {"words": 1}

    class Settings(AttackSettings):
        """words: number of words of the correct answer to give; answers with no more words than that are not changed.

        text: a text to give instead.
        """

        name: Literal["prefill"] = "prefill"
        words: Whole | None = None
        text: str | None = None

        @model_validator(mode="after")
        def _one_of_them(self) -> Self:
            if (self.words is None) == (self.text is None):
                raise ValueError("words (of the right answer) or text: give one of them")
            if self.text is not None and (not self.text or self.text != self.text.strip()):
                raise ValueError("text: give some, without white space around it")
            return self

    @property
    def unmet_requirement(self) -> str:
        if self.settings.words is None:
            return super().unmet_requirement
        return f"asks for an answer of more than {self.settings.words} words. Use fewer"

    def applies_to(self, item: Item, probe: Probe) -> bool:
        if self.settings.words is None:
            return item.style is Style.QUESTION
        return probe.kind is not ProbeKind.CHOICE and len(item.reference.split()) > self.settings.words

    def rewritten(self, item: Item, probe: Probe, context: AttackContext) -> Item:
        s = self.settings
        if s.text is not None:
            return replace(item, prefill=_joined(item.prefill, s.text))
        begun = re.match(r"\s*\S+" + r"\s+\S+" * (s.words - 1), item.reference) if s.words else None
        if begun is None:
            return item
        given = begun.group()
        rest = item.reference[len(given) :]
        if item.style is Style.TEXT:
            return replace(item, prefill=f"{item.prefill}{given}", answers=(rest,), correct=0)
        # The encoder puts one space between the two.
        return replace(item, prefill=_joined(item.prefill, given.strip()), answers=(rest.lstrip(),), correct=0)


def _joined(before: str, more: str) -> str:
    return f"{before} {more}" if before else more
