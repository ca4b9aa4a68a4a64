"""Benign fine-tuning: train on texts unrelated to what was forgotten, and measure whether it comes back.

Knowledge that returns was suppressed rather than removed, since these texts do not teach it. On WMDP ten unrelated
texts undid unlearning (arXiv 2409.18025), as unrelated texts undo alignment (arXiv 2310.03693).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from suite.attacks.finetuning.base import FineTuning, FineTuningSettings
from suite.attacks.texts import Texts


class Benign(FineTuning["Benign.Settings"]):
    """Fine-tuning on n texts that do not contain what was forgotten: retain texts, Wikipedia, or another task's."""

    source = "Lucki et al. 2024, arXiv 2409.18025; Qi et al. 2024, arXiv 2310.03693"
    example: ClassVar[Mapping[str, Any]] = {"samples": 2, "steps": 2, "lr": 1e-3, "points": 2}

    class Settings(FineTuningSettings):
        name: Literal["benign"] = "benign"
        texts: str = Texts.RETAIN

        @field_validator("texts")
        @classmethod
        def _unrelated(cls, texts: str) -> str:
            if texts in (Texts.FORGET, Texts.UNASKED, Texts.QUESTIONS):
                raise ValueError(f"{texts} texts are of what was forgotten. Use name=relearn, or retain, wikitext, ...")
            return texts
