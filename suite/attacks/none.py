"""The attack that does nothing. Every official set contains it, so that robustness never exceeds forgetting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from suite.attacks.base import Access, Attack, AttackContext, AttackSettings, Subject


class NoAttack(Attack["NoAttack.Settings"]):
    """The subject without an attack."""

    access = Access.NOTHING

    class Settings(AttackSettings):
        name: Literal["none"] = "none"

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        yield 0, subject
