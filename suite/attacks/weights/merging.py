"""Merging: weights on the line from the subject back to the model before unlearning.

An attacker who has that model does not need this attack. But how early on the line the forgotten returns shows how deep
the forgetting is, and how much of the old model's utility can be regained before it (calibration by mixing,
arXiv 2406.09179).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from suite.attacks.base import Access, Attack, AttackContext, AttackSettings, Subject
from suite.config.errors import SpecError
from suite.models.checkpoints import interpolated
from tasks.task import Probe


class Merge(Attack["Merge.Settings"]):
    """Weights interpolated with those of the model before unlearning."""

    access = Access.WEIGHTS
    needs_target = True
    source = "Wang et al. 2024, arXiv 2406.09179; Wortsman et al. 2022, arXiv 2109.01903"
    example: ClassVar[Mapping[str, Any]] = {"share": 0.5}

    class Settings(AttackSettings):
        """share: share of the model before unlearning; at 1 the result is that model."""

        name: Literal["merge"] = "merge"
        share: float = Field(ge=0, le=1)

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        return {"target": context.target_key}

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        if not self.settings.share:
            yield 0, subject
            return
        if context.target is None:
            raise SpecError("attacks: merge: there is no model before unlearning here. Name one, or leave merge out")
        yield 0, Subject(interpolated(subject.checkpoint, context.target, self.settings.share), subject.probes)
