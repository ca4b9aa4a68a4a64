"""The spec of one trial: a frozen value with a canonical form, whose SHA-256 is its id.

A spec file is one mapping: the trial's own settings, and beside them `measure` (how the result is attacked and
evaluated), `runtime` (where it runs) and `search` (many trials from one). The id covers the trial's own settings alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from suite.adapters import ADAPTERS
from suite.config.canonical import digest
from suite.config.numbers import Count, Decay, Seed, Seeds, Whole, one_or_several
from suite.config.settings import Settings, check_plain, parse, settings_in
from suite.models.settings import CheckpointName, ModelSpec
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.optimizers.hybrid import Hybrid, zeroth_steps
from suite.oracle.base import Grade, Order
from suite.smoothing import SMOOTHINGS
from tasks import TASKS
from tasks.plain_text import cut

if TYPE_CHECKING:
    from suite.adapters import AdapterSettings
    from suite.objectives import ObjectiveSettings
    from suite.optimizers import OptimizerSettings
    from suite.smoothing import SmoothingSettings
else:  # the settings of any entry of the axis; their `name` says of which
    AdapterSettings = ADAPTERS.settings
    ObjectiveSettings = OBJECTIVES.settings
    OptimizerSettings = OPTIMIZERS.settings
    SmoothingSettings = SMOOTHINGS.settings


class AnchorSpec(Settings):
    """Where both anchors come from: the target, trained on all texts, and the retrained model, without the forget set.

    Attributes:
        source: `trained`, here, for `epochs` epochs with step size `lr`; `published`, the checkpoints that the task
            knows for `model.name`; `pretrained`, the unchanged model as target, of whose knowledge the task forgets a
            part, with chance as the zero. A bare word in a spec is the source.
        target, retrained: your own checkpoints instead, folders or hub ids. Without `retrained`, chance is the zero.
        retain_limit: use only the first so many retain texts, for training and for unlearning; all by default.
        retain_repeats: how often an epoch has each retain text; it has each forget text once. In real training data the
            forget set is often rare.
        seed: of the anchors alone, so that trials with several seeds share them. Of several in a list each has a target
            and a retrained model of its own: the first target is unlearned, and the scale is the mean over them.
    """

    source: Literal["trained", "published", "pretrained"] = "trained"
    target: CheckpointName | None = None
    retrained: CheckpointName | None = None
    epochs: Count | None = None
    lr: float | None = Field(None, gt=0)
    batch_size: Count = 16
    retain_limit: Count | None = None
    retain_repeats: int = Field(1, ge=1, le=1000)
    warmup: Whole = 20
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: float = Field(0.0, ge=0)
    seed: Seeds = 0

    @field_validator("seed", mode="before")
    @classmethod
    def _seeds(cls, seed: Any) -> Any:
        return one_or_several(seed)

    @property
    def trained(self) -> bool:
        """Whether the anchors are trained here."""
        return self.source == "trained" and self.target is None

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for each pair of anchors."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    @property
    def pairs(self) -> tuple[AnchorSpec, ...]:
        """The same with each seed alone; the first is of the target that is unlearned."""
        return tuple(self.model_copy(update={"seed": seed}) for seed in self.seeds)

    @property
    def training(self) -> tuple[int, float]:
        """Epochs and step size of anchors that are trained here."""
        if self.epochs is None or self.lr is None:
            raise ValueError("nothing is trained where the checkpoints are given")
        return self.epochs, self.lr

    @model_validator(mode="after")
    def _one_origin(self) -> AnchorSpec:
        if self.target and self.source != "trained":
            raise ValueError(f"target belongs to checkpoints of your own, not to source={self.source}")
        if self.retrained and not self.target:
            raise ValueError("retrained: needs a target beside it. Name both checkpoints")
        if not self.trained and isinstance(self.seed, tuple):
            raise ValueError(
                "seed: several seeds are of anchors that are trained here, and these are given. Leave it out"
            )
        for name in ("epochs", "lr"):
            if self.trained and getattr(self, name) is None:
                raise ValueError(
                    f"{name}: missing, and it has no default. Say how both are trained (epochs, lr), or write "
                    "anchors: published, anchors: pretrained, or anchors.target and anchors.retrained"
                )
            if not self.trained and getattr(self, name) is not None:
                raise ValueError(f"{name}: nothing is trained where the checkpoints are given. Leave it out, or null")
        return self


class Checkpoints(Settings):
    """Which intermediate checkpoints are saved and measured."""

    every: Count | None = None


class Identified(Settings):
    """What a runner runs: a trial or a null trial, a frozen value with a canonical form.

    Whoever derives from it has the fields `anchors` and `model`.
    """

    if TYPE_CHECKING:
        model: ModelSpec
        anchors: AnchorSpec

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """The settings that are not at their default; equivalent settings are written the same way."""
        plain = self.changed()
        if self.anchors.target:  # without a model the target's own folder is it, so `tiny` has to be written
            plain["model"] = self.model.changed()
        return plain

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.canonical)

    @cached_property
    def entry(self) -> str:
        """Digest of the canonical form without its seed: one entry, or null entry, of the board."""
        return digest({key: value for key, value in self.canonical.items() if key != "seed"})


class TrialSpec(Identified):
    """One trial: a model that was trained on a task unlearns a part of it. Attacks and evaluation follow.

    Attributes:
        forget: the task's requests to unlearn, one after another, each with the full number of steps; together they
            must be the complete forget set. `all` unlearns everything at once.
        adapter: the parameters that are optimized: `full`, the weights themselves, or an adapter that is merged into
            them at the end.
        trainable: patterns (as in file names) of the parameters that unlearning may change. An adapter has its own.
        batch_size: forget texts per step, and retain texts per step.
        until: early-stopping criterion: stop at the first intermediate checkpoint where it holds on dev, e.g.
            `knowledge<=0.2`.
    """

    task: str
    model: ModelSpec = ModelSpec()
    anchors: AnchorSpec
    objective: ObjectiveSettings
    smoothing: SmoothingSettings = Field(default_factory=lambda: SMOOTHINGS["none"].Settings())
    optimizer: OptimizerSettings
    adapter: AdapterSettings = Field(default_factory=lambda: ADAPTERS["full"].Settings())
    forget: tuple[str, ...] = ("all",)
    trainable: tuple[str, ...] = Field(("*",), min_length=1)
    steps: int = Field(ge=1, le=10_000_000)  # a hybrid's order of steps is a list
    batch_size: Count = 16
    checkpoints: Checkpoints = Checkpoints()
    until: str | None = None
    seed: Seed = 0

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"unknown: {cut(task)}.{TASKS.nearest(task)} (allowed: {', '.join(TASKS.titles)})")
        return task

    @model_validator(mode="after")
    def _valid_together(self) -> TrialSpec:
        check(self)
        return self

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """The settings that are not at their default; equivalent settings are written the same way."""
        return super().canonical | {"optimizer": self.optimizer.plainest().changed()}

    @property
    def label(self) -> str:
        """A short label for progress, tables and messages."""
        smoothing = "" if self.smoothing.name == "none" else f" · {self.smoothing.name}"
        return f"{self.optimizer.name} · {self.objective.name}{smoothing} · seed {self.seed}"

    @property
    def normalised(self) -> TrialSpec:
        """The same trial, parsed from its canonical form."""
        return parse(TrialSpec, self.canonical)

    @property
    def until_knowledge(self) -> float | None:
        """The bound in `until`."""
        found = None if self.until is None else _UNTIL.fullmatch(self.until)
        return float(found[1]) if found else None


_UNTIL = re.compile(r"knowledge\s*<=\s*(0|1|0?\.\d+|1\.0*|0\.\d*)")


def check(spec: TrialSpec) -> None:
    """Check for settings that are valid alone but not together.

    Raises:
        ValueError: naming the key and what to change.
    """
    optimizer = spec.optimizer
    if isinstance(optimizer, Hybrid.Settings) and optimizer.kind == "alternate" and 0 < optimizer.zo_ratio < 1:
        zeroth = zeroth_steps(spec.steps, optimizer.zo_ratio)
        if zeroth in (0, spec.steps):
            raise ValueError(
                f"optimizer.zo_ratio: {optimizer.zo_ratio} of {spec.steps} steps is {zeroth} zeroth-order steps, so "
                "nothing alternates. Take more steps, another ratio, or 0 or 1 for a pure optimizer"
            )
    orders, smoothing = ORDERS[OPTIMIZERS[optimizer.name].grade], SMOOTHINGS[spec.smoothing.name]
    if not orders & smoothing.smooths:
        changes = " and ".join(order.name.lower() + "s" for order in sorted(smoothing.smooths))
        raise ValueError(
            f"smoothing.name: {spec.smoothing.name} changes {changes}, which {optimizer.name} never asks for, so the "
            f"trial would be one without smoothing. {_smoothings_for(orders)}"
        )
    if spec.adapter.name != "full" and spec.trainable != ("*",):
        raise ValueError(
            f"trainable: with adapter.name={spec.adapter.name} only the adapter's own parameters are moved. Leave "
            "trainable out and choose layers with adapter.targets, or take adapter.name=full"
        )
    layer = getattr(spec.objective, "layer", None)
    if layer is not None and spec.model.name == "tiny" and layer >= spec.model.tiny.layers:
        raise ValueError(
            f"objective.layer: {layer}, but model.tiny has {spec.model.tiny.layers} blocks. Use 0 to "
            f"{spec.model.tiny.layers - 1}, or more model.tiny.layers"
        )
    if spec.until is not None:
        if spec.until_knowledge is None:
            raise ValueError(f"until: not understood: {cut(spec.until)}. Write knowledge<=0.2")
        if spec.checkpoints.every is None:
            raise ValueError("until: is checked at intermediate checkpoints. Set checkpoints.every too")
    if spec.checkpoints.every is not None and spec.checkpoints.every > spec.steps:
        raise ValueError(f"checkpoints.every: {spec.checkpoints.every} is more than steps={spec.steps}")


ORDERS = {
    Grade.SECOND: {Order.GRADIENT, Order.CURVATURE},
    Grade.FIRST: {Order.GRADIENT},
    Grade.COMPRESSED: {Order.GRADIENT},
    Grade.ZEROTH: {Order.VALUE},
    Grade.HYBRID: {Order.VALUE, Order.GRADIENT},
}
"""The orders of derivatives that optimizers of each grade use."""


def _smoothings_for(orders: set[Order]) -> str:
    names = [name for name, kind in SMOOTHINGS.items() if kind.smooths & orders]
    return f"With this optimizer go {', '.join(names)}"


def trial(data: Mapping[str, Any]) -> TrialSpec:
    """The trial of a mapping of settings, in canonical form.

    A bare name is short for a section (`objective: npo`), for the source of the anchors (`anchors: published`), or for
    a list of one (`forget: people`). Without a model, a target of one's own is the model, with its own template.

    Raises:
        SpecError: naming the key, the allowed values and the nearest match.
    """
    check_plain(data)
    plain = named(TrialSpec, data)
    if isinstance(plain.get("anchors"), str):
        plain["anchors"] = {"source": plain["anchors"]}
    for key in ("forget", "trainable"):
        if isinstance(plain.get(key), str):
            plain[key] = [plain[key]]
    model, target = plain.get("model", {}), isinstance(plain.get("anchors"), Mapping) and plain["anchors"].get("target")
    if isinstance(target, str) and isinstance(model, Mapping) and not model.keys() & {"name", "tiny"}:
        plain["model"] = {**model, "name": target}
    return parse(TrialSpec, plain).normalised


def named(kind: type[Settings], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with every bare name of a section expanded to a mapping, at any depth."""
    plain = dict(data)
    for key, field in kind.model_fields.items():
        section, members = settings_in(field.annotation)
        if members and isinstance(plain.get(key), str):
            plain[key] = {"name": plain[key]}
        if isinstance(plain.get(key), Mapping):
            name = plain[key].get("name")
            chosen = section or (members.get(name) if isinstance(name, str) else None)
            plain[key] = named(chosen, plain[key]) if chosen else dict(plain[key])
    return plain
