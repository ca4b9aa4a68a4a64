"""Sampling: several answers are drawn at a temperature, and the one that reveals most is scored.

Knowledge that greedy decoding no longer shows may still appear in samples (leak@k, arXiv 2511.04934; arXiv 2410.03523).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import Field

from suite.attacks.base import AttackContext, AttackSettings, PromptEdit
from suite.config.errors import UnsuitableError
from suite.config.numbers import Few, Seed
from tasks.task import Probe, ProbeKind, Sampling, Split, Subset, Task


class BestOfSeveral(PromptEdit["BestOfSeveral.Settings"]):
    """Best of several answers drawn at a temperature. Probes that do not generate are not changed."""

    source = "arXiv 2511.04934; Scholten et al. 2025, arXiv 2410.03523"
    example: ClassVar[Mapping[str, Any]] = {"draws": 2}

    class Settings(AttackSettings):
        """draws: answers per question. temperature: 1 is the model's own distribution, 0 the greedy answer."""

        name: Literal["sample"] = "sample"
        draws: Few
        temperature: float = Field(1.0, ge=0)
        seed: Seed = 0

    @property
    def changes_nothing(self) -> bool:
        return not self.settings.temperature

    def check(self, task: Task, split: Split) -> None:
        generated = (p for p in task.probes_of(split) if p.kind is ProbeKind.GENERATE and p.subset is Subset.FORGET)
        if not any(generated):
            raise UnsuitableError(
                f"attacks: {self.name}: no forget answer of {task.name} is generated on {split}. Leave this attack out"
            )

    def edited_probe(self, probe: Probe, context: AttackContext) -> Probe:
        s = self.settings
        if probe.kind is not ProbeKind.GENERATE or self.changes_nothing:
            return probe
        seed = Random(f"{context.seed}:{s.seed}").randrange(2**31)
        return replace(probe, sampling=Sampling(s.draws, s.temperature, seed))
