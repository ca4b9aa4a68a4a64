"""The settings and the training loop that all fine-tuning attacks share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from suite.adapters.lora import LoRA
from suite.adapters.low_rank import linear_layers
from suite.attacks.base import Access, Attack, AttackContext, AttackSettings, Subject
from suite.attacks.texts import Source, Texts, at_least, draw_texts, texts_of
from suite.config.errors import UnsuitableError
from suite.config.numbers import Count, Few, Seed, Whole
from suite.models.checkpoints import Checkpoint, TensorCheckpoint, context_of
from suite.models.encoding import Encoded
from suite.models.finetuning import Schedule, finetune
from suite.models.gradient_checkpointing import checkpoint_blocks
from tasks.task import Probe, Split, Task, examples_digest

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

OWN = (Texts.FORGET, Texts.UNASKED, Texts.RETAIN)
"""Sources determined by the task's forget and retain texts and by the probes, which are part of stage keys anyway."""


class FineTuningSettings(AttackSettings):
    """Settings of attacks that train. Exactly one of `steps` and `epochs` is set.

    Attributes:
        texts: source of the texts (see `suite.attacks.texts`), of which `samples` are drawn at random.
        steps: total number of updates.
        epochs: total number of passes over the drawn texts; for running text in blocks, over its blocks.
        points: number of evenly spaced points at which the model is measured, in steps or in epochs like the length.
        schedule: how the step size falls from the first step to the last; `warmup` is the share of the steps over which
            it rises first.
        adapter: what is trained: all weights, or a LoRA of every linear layer except the output layer, merged for
            measurement.
        rank, alpha: of the LoRA, whose change is alpha / rank times B A; the defaults are those of arXiv 2409.18025.
        seed: seed of the draw of texts, of their order and of the adapter's initialization.
    """

    texts: Source = Texts.FORGET
    samples: Count
    steps: Whole | None = None
    epochs: Whole | None = None
    lr: float = Field(gt=0)
    batch_size: Count = 4
    points: Few = 1
    schedule: Schedule = "constant"
    warmup: float = Field(0.0, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    adapter: Literal["full", "lora"] = "full"
    rank: Few = 128
    alpha: float = Field(16.0, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = {key: value for key in ("steps", "epochs") if (value := getattr(self, key)) is not None}
        if len(given) != 1:
            raise ValueError("set one of steps and epochs: how long the attacker trains")
        ((unit, length),) = given.items()
        if length and self.points > length:
            raise ValueError(f"points={self.points} is more than {unit}={length}")
        if self.adapter == "full" and {"rank", "alpha"} & self.changed().keys():
            raise ValueError("rank and alpha are LoRA's. Set adapter=lora, or leave them out")
        return self


F = TypeVar("F", bound=FineTuningSettings)


class FineTuning(Attack[F]):
    """An attack that trains the subject on texts and measures it at points along the way."""

    access = Access.WEIGHTS
    ascend: ClassVar[bool] = False
    """Whether to maximise the loss on the texts instead of minimising it."""

    _texts_digest: str | None = None
    """Digest of texts from outside the task, cached because they are many and stage keys are computed often."""

    @property
    def length(self) -> int:
        """Total number of steps or epochs."""
        s = self.settings
        return s.steps if s.steps is not None else s.epochs or 0  # one of them is set

    @property
    def points(self) -> tuple[int, ...]:
        number = self.settings.points
        return tuple(sorted({round(self.length * (i + 1) / number) for i in range(number)}))

    @property
    def changes_nothing(self) -> bool:
        """Whether the settings stand for no change at all."""
        return not self.length

    def check(self, task: Task, split: Split) -> None:
        at_least(self.settings.samples, self.settings.texts, task, split)

    def check_model(self, model: CausalLM) -> None:
        if self.settings.adapter == "lora" and not self.changes_nothing:
            try:
                linear_layers(model, LoRA.Settings().targets)
            except UnsuitableError:
                raise UnsuitableError(
                    f"attacks: adapter=lora: {type(model).__name__} ({model.config.model_type}) has no nn.Linear for a "
                    "LoRA. Use adapter=full, or leave the attack out"
                ) from None

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        source = self.settings.texts
        if source in OWN:
            return {}
        if source == Texts.QUESTIONS or self._texts_digest is None:
            self._texts_digest = examples_digest(texts_of(source, context.task, probes[0].split))
        return {"taught": self._texts_digest}

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        checkpoints: Iterator[tuple[int, Checkpoint]] = ((point, subject.checkpoint) for point in self.points)
        if not self.changes_nothing:
            checkpoints = self.train(subject.checkpoint, subject.split, context)
        for point, checkpoint in checkpoints:
            yield point, Subject(checkpoint, subject.probes)

    def train(
        self, checkpoint: Checkpoint, split: Split, context: AttackContext
    ) -> Iterator[tuple[int, TensorCheckpoint]]:
        """The weights at each point of the curve, trained in the checkpoint's dtype.

        Raises:
            UnsuitableError: there are fewer texts than needed, or the model has no linear layers for a LoRA.
        """
        s = self.settings
        rng = random.Random(f"{context.seed}:{s.seed}")
        examples = draw_texts(s.texts, s.samples, context.task, split, rng)
        # Questions are never cut into blocks, whatever their style: a question must end with its answer.
        encoded = context.encoder.examples(examples, None if s.texts == Texts.QUESTIONS else context.block)
        order = rng.randrange(2**31)
        model = checkpoint.model(context.device)
        texts = cut_to_context(encoded, context_of(checkpoint.architecture))
        if not texts:
            raise UnsuitableError(
                f"attacks: texts={s.texts}: none of the {s.samples} drawn texts fits the model's context"
            )
        if context.gradient_checkpointing:
            checkpoint_blocks(model)
        adapter = None
        if s.adapter == "lora":
            adapter = LoRA(LoRA.Settings(rank=s.rank, alpha=s.alpha), model, rng.randrange(2**31))
        unit = 1 if s.epochs is None else -(-len(texts) // s.batch_size)
        steps = self.length * unit
        reported = finetune(
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
        for step in reported:
            with adapter.exported(adapter.merged()) if adapter else nullcontext(model) as merged:
                weights = TensorCheckpoint.of(merged, checkpoint.architecture)
            yield step // unit, weights


def cut_to_context(texts: list[Encoded], limit: int | None) -> list[Encoded]:
    """The texts, cut at `limit` tokens; texts whose answers begin beyond that are left out.

    The task's own texts are known to fit the model's context, but texts of Wikipedia and of other tasks may not.
    """
    return [text.cut(limit) for text in texts if text.start < limit] if limit else texts
