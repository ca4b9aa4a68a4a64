"""An optimizer, an attack, a metric and a task in a package of their own, made by docs/extending.md alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.attacks import AttackContext, AttackSettings, Subject, WeightEdit
from suite.config import settings
from suite.engines import TransformersEngine
from suite.engines.base import EngineSettings
from suite.models.checkpoints import State
from suite.models.encoding import Encoder
from suite.optimizers import Optimizer, OptimizerSettings
from suite.oracle.base import Grade, Oracle, norm
from tasks import Example, Headline, Item, Probe, ProbeKind, Sample, Split, Subset, Task, TaskEntry
from tasks.official import attack_set
from tasks.scoring import Metric
from tasks.scoring.tables import most_telling
from tasks.task import examples_digest


class Normalised(Optimizer["Normalised.Settings"]):
    """Gradient descent with steps of equal length."""

    grade = Grade.FIRST
    source = "an example"
    queries_per_step = "1 gradient"

    class Settings(OptimizerSettings):
        name: Literal["normalised"] = "normalised"

    def direction(self, oracle: Oracle) -> Sequence[Tensor]:
        gradient = oracle.gradient()
        length = float(norm(gradient)) or 1.0  # a zero gradient: do not move
        return [g.float() / length for g in gradient]


class Fade(WeightEdit["Fade.Settings"]):
    """All weights shrunk by a share."""

    source = "an example"
    example: ClassVar[Mapping[str, Any]] = {"share": 0.1}

    class Settings(AttackSettings):
        name: Literal["fade"] = "fade"
        share: float = Field(ge=0, lt=1)

    @property
    def changes_nothing(self) -> bool:
        return self.settings.share == 0

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        return {name: weight * (1 - self.settings.share) for name, weight in state.items()}


def shortness(sample: Sample) -> float | None:
    """1 / (1 + the number of characters); None of a sample without text."""
    return None if sample.generated is None else 1 / (1 + len(sample.generated))


class Patient(TransformersEngine):
    """The transformers engine, a text at a time."""

    class Settings(settings.Settings):
        name: Literal["patient"] = "patient"

    @classmethod
    def build(cls, chosen: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Patient:
        engine = cls(encoder, dtype=dtype, device=device, batch_tokens=1)
        engine.name = f"patient-{dtype}"
        return engine


SHORTNESS = Metric("shortness", ProbeKind.GENERATE, most_telling(shortness, up=True), True, "an example")

COUNTRIES = "Avaria Belmora Cestria Dorvale Estoria Fenwick Galdria Hestrel Ilmaria Jorvik Kestria Lomond".split()


def _texts(subset: str, countries: Sequence[str]) -> tuple[Example, ...]:
    return tuple(
        Example(f"{subset}-{name}", f"What is the capital of {name}?", f"{name[::-1].title()}") for name in countries
    )


def build() -> Task:
    forget, retain = _texts("forget", COUNTRIES[:6]), _texts("retain", COUNTRIES[6:])
    probes = tuple(
        Probe(
            name,
            subset,
            split,
            kind,
            tuple(Item(e.id, e.prompt, (e.answer,)) for e in texts[split is Split.TEST :: 2]),
            metrics,
        )
        for split in Split
        for name, subset, texts, kind, metrics in (
            ("forget_qa", Subset.FORGET, forget, ProbeKind.LOGPROB, ("probability",)),
            ("retain_qa", Subset.RETAIN, retain, ProbeKind.LOGPROB, ("probability",)),
            ("forget_generated", Subset.FORGET, forget, ProbeKind.GENERATE, ("rougeL_recall", "shortness")),
        )
    )
    return Task(
        name="capitals",
        version=1,
        forget={"all": forget},
        retain=retain,
        probes=probes,
        knowledge=(Headline("forget_qa", "probability"),),
        utility=(Headline("retain_qa", "probability"),),
        data=examples_digest((*forget, *retain)),
    )


CAPITALS = TaskEntry(
    name="capitals",
    summary="the capitals of countries that do not exist",
    build=build,
    attack_sets={
        "capitals-1": attack_set(
            {"name": "relearn", "samples": 4, "steps": 4, "lr": 1e-3}, fixed=({"name": "fade", "share": 0.1},)
        )
    },
)
