"""What attacks that train have in common: whose texts, how many, how long, with which step sizes, and what is moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from suite.adapters.lora import LoRA
from suite.attacks.base import Access, Attack, AttackContext, AttackSettings, Subject
from suite.attacks.texts import Source, Texts, drawn, enough, texts_of
from suite.config.errors import SpecError
from suite.models.checkpoints import Checkpoint, TensorCheckpoint, context_of
from suite.models.encoding import Encoded
from suite.models.finetuning import Schedule, finetune
from suite.models.gradient_checkpointing import checkpoint_blocks
from tasks.task import Probe, Split, Task, examples_digest

OWN = (Texts.FORGET, Texts.UNASKED, Texts.RETAIN)
"""Sources that follow from the task's forget and retain texts and from what is asked: stage keys have them anyway."""


class FineTuningSettings(AttackSettings):
    """Settings of attacks that train. Exactly one of `steps` and `epochs` is set.

    Attributes:
        texts: where the texts come from (see `suite.attacks.texts`), of which `samples` are drawn at random.
        steps: updates in all.
        epochs: rounds over the drawn texts, in all; of running text that is taught in blocks, over its blocks.
        points: places measured, at equal distances; they are counted in steps or in epochs, as the length is.
        schedule: how the step size falls from the first step to the last; `warmup` is the share of the steps over which
            it rises as well.
        adapter: what is moved: all weights, or a LoRA of every linear layer but the output layer, merged when measured.
        rank, alpha: of the LoRA, whose change is alpha / rank times B A; the defaults are those of arXiv 2409.18025.
        seed: of the draw, of the order and of the adapter's start.
    """

    texts: Source = Texts.FORGET
    samples: int = Field(ge=1)
    steps: int | None = Field(None, ge=0)
    epochs: int | None = Field(None, ge=0)
    lr: float = Field(gt=0)
    batch_size: int = Field(4, ge=1)
    points: int = Field(1, ge=1)
    schedule: Schedule = "constant"
    warmup: float = Field(0.0, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    adapter: Literal["full", "lora"] = "full"
    rank: int = Field(128, ge=1)
    alpha: float = Field(16.0, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> FineTuningSettings:
        given = {key: value for key in ("steps", "epochs") if (value := getattr(self, key)) is not None}
        if len(given) != 1:
            raise ValueError("set one of steps and epochs: how long the attacker trains")
        ((unit, length),) = given.items()
        if length and self.points > length:
            raise ValueError(f"points={self.points} is more than {unit}={length}")
        if self.adapter == "full" and {"rank", "alpha"} & self.changed().keys():
            raise ValueError("rank and alpha are LoRA's. Set adapter=lora, or leave them out")
        return self


class FineTuning(Attack):
    """An attack that trains the subject on texts, measured along the way."""

    access = Access.WEIGHTS
    ascend: ClassVar[bool] = False
    """Whether the loss on the texts is to rise instead."""

    _taught: str | None = None
    """Digest of texts from elsewhere: they are many, and keys are asked for often."""

    @property
    def length(self) -> int:
        """Steps or epochs in all."""
        s = self.settings
        return s.epochs if s.steps is None else s.steps

    @property
    def points(self) -> tuple[int, ...]:
        number = self.settings.points
        return tuple(sorted({round(self.length * (i + 1) / number) for i in range(number)}))

    @property
    def idle(self) -> bool:
        """Whether the settings ask for no change at all."""
        return not self.length

    def check(self, task: Task, split: Split) -> None:
        enough(self.settings.texts, self.settings.samples, task, split)

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        source = self.settings.texts
        if source in OWN:
            return {}
        if source == Texts.QUESTIONS or self._taught is None:
            self._taught = examples_digest(texts_of(source, context.task, probes[0].split))
        return {"taught": self._taught}

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        states = ((point, subject.checkpoint) for point in self.points)
        if not self.idle:
            states = self.trained(subject.checkpoint, subject.split, context)
        for point, checkpoint in states:
            yield point, Subject(checkpoint, subject.probes)

    def trained(
        self, checkpoint: Checkpoint, split: Split, context: AttackContext
    ) -> Iterator[tuple[int, TensorCheckpoint]]:
        """The weights at each point of the curve, trained in the checkpoint's dtype.

        Raises:
            SpecError: there are not so many texts, or the model has no linear layers for a LoRA.
        """
        s = self.settings
        draw = random.Random(f"{context.seed}:{s.seed}")
        held = drawn(s.texts, s.samples, context.task, split, draw)
        # A question ends with its answer, so questions are not cut into blocks, whatever they are written like.
        encoded = context.encoder.examples(held, None if s.texts == Texts.QUESTIONS else context.block)
        order = draw.randrange(2**31)
        model = checkpoint.model(context.device)
        texts = fitting(encoded, context_of(checkpoint.architecture))
        if not texts:
            raise SpecError(f"attacks: texts={s.texts}: none of the {s.samples} drawn texts fits the model's context")
        if context.gradient_checkpointing:
            checkpoint_blocks(model)
        adapter = None
        if s.adapter == "lora":
            adapter = LoRA(LoRA.Settings(rank=s.rank, alpha=s.alpha), model, draw.randrange(2**31))
        unit = 1 if s.epochs is None else -(-len(texts) // s.batch_size)
        steps = self.length * unit
        made = finetune(
            model,
            texts,
            steps=steps,
            lr=s.lr,
            batch_size=s.batch_size,
            seed=order,
            warmup=round(s.warmup * steps),
            schedule=s.schedule,
            weight_decay=s.weight_decay,
            ascend=self.ascend,
            report_at=[point * unit for point in self.points],
        )
        for step in made:
            with adapter.exported(adapter.merged()) if adapter else nullcontext(model) as ordinary:
                weights = TensorCheckpoint.of(ordinary, checkpoint.architecture)
            yield step // unit, weights


def fitting(texts: list[Encoded], room: int | None) -> list[Encoded]:
    """The texts, cut where the model's context ends; those whose answers begin beyond it are left out.

    The task's own texts fit. Those of Wikipedia and of other tasks were not written for this model.
    """
    return [text.cut(room) for text in texts if text.start < room] if room else texts
