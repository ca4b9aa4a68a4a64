"""Relearning: fine-tune on a few of the forgotten texts and see how much else comes back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from suite.attacks.base import Attack, AttackContext, AttackSettings, Means, Subject
from suite.attacks.texts import Texts, drawn, enough
from suite.checkpoints import TensorCheckpoint
from suite.finetuning import finetune
from suite.recompute import recompute_blocks
from tasks.task import Split, Task


class Relearning(Attack):
    """Fine-tuning on n of the forget texts with its own AdamW, measured along the way."""

    means = Means.WEIGHTS
    source = "Fan et al. 2025, arXiv 2502.05374"

    class Settings(AttackSettings):
        """samples: forget texts that the attacker holds, drawn at random. points: places measured.

        steps: updates in all. seed: of the draw and of the order.
        """

        name: Literal["relearn"] = "relearn"
        samples: int = Field(ge=1)
        steps: int = Field(ge=0)
        lr: float = Field(gt=0)
        batch_size: int = Field(4, ge=1)
        points: int = Field(1, ge=1)
        seed: int = 0

        @model_validator(mode="after")
        def _whole_points(self) -> Relearning.Settings:
            if self.steps and self.points > self.steps:
                raise ValueError(f"points={self.points} is more than steps={self.steps}")
            return self

    @property
    def points(self) -> tuple[int, ...]:
        s = self.settings
        return tuple(sorted({round(s.steps * (i + 1) / s.points) for i in range(s.points)}))

    def check(self, task: Task, split: Split) -> None:
        enough(Texts.FORGET, self.settings.samples, task, split)

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        s = self.settings
        draw = random.Random(f"{context.seed}:{s.seed}")
        held = drawn(Texts.FORGET, s.samples, context.task, subject.split, draw)
        texts = context.encoder.examples(held, context.block)
        if not s.steps:
            yield 0, subject
            return
        model = subject.checkpoint.model(context.device)
        if context.gradient_checkpointing:
            recompute_blocks(model)
        states = finetune(
            model,
            texts,
            steps=s.steps,
            lr=s.lr,
            batch_size=s.batch_size,
            seed=draw.randrange(2**31),
            report_at=self.points,
        )
        for step in states:
            yield step, Subject(TensorCheckpoint.of(model, subject.checkpoint.architecture), subject.probes)
