"""A package of methods as somebody else would write it: one of each axis that is right, and some that are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from suite.adapters import ADAPTERS
from suite.attacks import Subject
from suite.attacks.base import Access, Attack, AttackSettings, PromptEdit
from suite.models.likelihood import mean_nll
from suite.objectives import Objective, ObjectiveSettings
from suite.optimizers import Optimizer, OptimizerSettings
from suite.oracle.base import Grade, Order, Part, norm
from suite.smoothing import Smoothing, SmoothingSettings
from tasks import TASKS
from tasks.scoring import Metric
from tasks.scoring.tables import most_telling
from tasks.task import ProbeKind, Sample


class Normalised(Optimizer):
    """Gradient descent with steps of equal length (of ours)."""

    grade = Grade.FIRST
    source = "of ours"
    queries_per_step = "1 gradient"

    class Settings(OptimizerSettings):
        name: Literal["normalised"] = "normalised"

    def direction(self, oracle: Any) -> list[Tensor]:
        gradient = oracle.gradient()
        length = float(norm(gradient)) or 1.0
        return [g.float() / length for g in gradient]


class Miscounted(Normalised):
    """It says that it asks for two gradients."""

    queries_per_step = "2 gradient"


class Misgraded(Normalised):
    """It says that it is of another grade."""

    grade = Grade.ZEROTH
    queries_per_step = "2q value"


class InPlace(Normalised):
    """It looks ahead by moving the weights, and moves them back."""

    def direction(self, oracle: Any) -> list[Tensor]:
        with torch.no_grad():
            for p in self.parameters:
                p.add_(0.1)
        gradient = oracle.gradient()
        with torch.no_grad():
            for p in self.parameters:
                p.sub_(0.1)
        return gradient


class Forgetful(Normalised):
    """Its average is no part of its state, and in the precision of the weights."""

    mean: list[Tensor] | None = None

    def direction(self, oracle: Any) -> list[Tensor]:
        gradient = oracle.gradient()
        before = self.mean or [torch.zeros_like(g) for g in gradient]
        self.mean = [0.9 * m + g for m, g in zip(before, gradient, strict=True)]
        return self.mean


class Uphill(Normalised):
    """It goes the wrong way."""

    def direction(self, oracle: Any) -> list[Tensor]:
        return [-g for g in super().direction(oracle)]


class Unexampled(Normalised):
    """Its example is not valid."""

    example: ClassVar[dict[str, Any]] = {"lr": 1e-3, "momentun": 0.9}


class Margin(Objective):
    """Ascent on the forget answers, bounded below (of ours)."""

    class Settings(ObjectiveSettings):
        name: Literal["margin"] = "margin"

    def forget_loss(self, model: Any, batch: Any) -> Tensor:
        return torch.nn.functional.softplus(-mean_nll(model, batch.forget))


class Stopped(Margin):
    """Its gradient is not that of its values."""

    def forget_loss(self, model: Any, batch: Any) -> Tensor:
        loss = mean_nll(model, batch.forget)
        return -loss * loss.detach().exp()


class Undeclared(Margin):
    """It reads refusals and does not say so."""

    def forget_loss(self, model: Any, batch: Any) -> Tensor:
        return mean_nll(model, batch.forget_refusals)


class Halved(Smoothing):
    """Half of the forget gradient (of ours)."""

    source = "of ours"
    smooths = frozenset({Order.GRADIENT})

    class Settings(SmoothingSettings):
        name: Literal["halved"] = "halved"

    def gradient(self, part: Part = Part.TOTAL, at: Any = None) -> list[Tensor]:
        if part in (Part.RETAIN, Part.RELEARN):
            return super().gradient(part, at)
        forget = [0.5 * g for g in super().gradient(Part.FORGET, at)]
        if part is Part.FORGET:
            return forget
        return [f + r for f, r in zip(forget, super().gradient(Part.RETAIN, at), strict=True)]


class Everything(Halved):
    """It halves the retain gradient too."""

    def gradient(self, part: Part = Part.TOTAL, at: Any = None) -> list[Tensor]:
        return [0.5 * g for g in self.oracle.gradient(part, at)]


class Unstepped(Halved):
    """It keeps the end of a step to itself."""

    def stepped(self) -> None:
        self.steps += 1


class Thin(ADAPTERS["lora"]):
    """LoRA of rank 2 (of ours)."""

    class Settings(ADAPTERS["lora"].Settings):
        name: Literal["thin"] = "thin"
        rank: int = 2


class Shifted(Thin):
    """It changes the model before the first step."""

    def __init__(self, settings: Any, model: nn.Module, seed: int) -> None:
        super().__init__(settings, model, seed)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(0.1)


class Polite(PromptEdit):
    """A word before each question (of ours)."""

    access = Access.PROMPTS
    source = "of ours"

    class Settings(AttackSettings):
        name: Literal["polite"] = "polite"

    def edited_probe(self, probe: Any, context: Any) -> Any:
        return replace(probe, items=tuple(replace(item, prompt=f"Please. {item.prompt}") for item in probe.items))


class Zeroing(Attack):
    """It sets a weight of its subject to zero, in place."""

    access = Access.WEIGHTS
    source = "of ours"

    class Settings(AttackSettings):
        name: Literal["zeroing"] = "zeroing"

    def apply(self, subject: Subject, context: Any) -> Any:
        next(iter(subject.checkpoint.state().values())).zero_()
        yield 0, subject


class Drawn(Polite):
    """It draws its word, and does not say so."""

    def edited_probe(self, probe: Any, context: Any) -> Any:
        word = "abc"[context.seed % 3]
        return replace(probe, items=tuple(replace(item, prompt=f"{word} {item.prompt}") for item in probe.items))


def shortness(sample: Sample) -> float | None:
    return None if sample.generated is None else -float(len(sample.generated))


SHORTNESS = Metric("shortness", ProbeKind.GENERATE, most_telling(shortness, True), True, "of ours")
WRONG_WAY = replace(SHORTNESS, name="wrong_way", up=False)
TASK = TASKS["pocket"]
NAMELESS = replace(TASK, name="nameless")
