"""What one trial is: a frozen value with a canonical form, whose SHA-256 is its id.

A spec file is one mapping: the trial's own settings, and beside them `measure` (how the result is attacked and asked),
`runtime` (where it runs) and `search` (many trials from one). Only the trial's own settings are its id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from suite.adapters import ADAPTERS
from suite.attacks import Attack, attack
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.optimizers.hybrid import Hybrid, layout
from suite.oracle import Grade, Order
from suite.settings import Settings, SpecError, nearest, parse, settings_in
from suite.smoothing import SMOOTHINGS
from suite.text import Template
from tasks import EXTRAS, TASKS
from tasks.task import Split

Count = Field(ge=1)


class TinyModel(Settings):
    """A Llama-architecture model and a byte-level BPE tokenizer that the suite makes for the task's own text."""

    hidden: int = Field(192, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    vocabulary: int = Field(1024, ge=258)
    context: int = Field(256, ge=16)

    @model_validator(mode="after")
    def _whole_heads(self) -> TinyModel:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} must be a multiple of 2 * heads={2 * self.heads}")
        return self


class ModelSpec(Settings):
    """The model before anything is taught: `tiny`, made here, or a causal LM by path or hub id.

    Attributes:
        name: `tiny`, a folder, or `owner/model`, with `@revision` where one is meant.
        template: what goes around a question; by default the tokenizer's chat template where it has one, else plain
            (`bare` for `tiny`).
    """

    name: str = "tiny"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    template: Template | None = None
    tiny: TinyModel = TinyModel()

    @model_validator(mode="after")
    def _tiny_only(self) -> ModelSpec:
        if self.name != "tiny" and self.tiny != TinyModel():
            raise ValueError(f"tiny belongs to name=tiny, not to name={self.name}")
        return self


class AnchorSpec(Settings):
    """Where both anchors come from: the target, which was taught everything, and the retrained model, which was not.

    Attributes:
        source: `trained`, here, in `epochs` epochs with step size `lr`; `published`, the checkpoints that the task
            knows for `model.name`; `pretrained`, the model as it is, of which the task forgets a part, with chance for
            a zero. A bare word in a spec is the source.
        target, retrained: checkpoints of your own instead, folders or hub ids. Without `retrained`, chance is the zero.
        retain_limit: how many of the task's retain texts are taught, and kept while unlearning, the first ones; all by
            default.
        retain_repeats: how often an epoch shows each retain text; the forget texts are shown once. What is to be
            forgotten is often rare in what a model was trained on.
        seed: of the anchors alone, so that trials with several seeds share them.
    """

    source: Literal["trained", "published", "pretrained"] = "trained"
    target: str | None = None
    retrained: str | None = None
    epochs: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    retain_limit: int | None = Field(None, ge=1)
    retain_repeats: int = Field(1, ge=1)
    warmup: int = Field(20, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(0.0, ge=0)
    seed: int = 0

    @property
    def trained(self) -> bool:
        """Whether the anchors are trained here."""
        return self.source == "trained" and self.target is None

    @model_validator(mode="after")
    def _one_origin(self) -> AnchorSpec:
        if self.target and self.source != "trained":
            raise ValueError(f"target belongs to checkpoints of your own, not to source={self.source}")
        if self.retrained and not self.target:
            raise ValueError("retrained: needs a target beside it. Name both checkpoints")
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
    """Which intermediate weights are kept and measured."""

    every: int | None = Field(None, ge=1)


class TrialSpec(Settings):
    """One trial: a model is taught a task, unlearns a part of it, and is left for others to attack and ask.

    Attributes:
        forget: the task's requests to unlearn, one after another, each with the full number of steps; together they
            must be the whole forget set. `all` is everything at once.
        adapter: what the steps move: `full`, the weights themselves, or an adapter that is merged into them at the end.
        trainable: patterns (as in file names) of the parameters that unlearning may move. An adapter brings its own.
        batch_size: forget texts per step, and retain texts per step.
        until: stop at the first kept checkpoint where this holds, judged on dev: `knowledge<=0.2`.
    """

    task: str
    model: ModelSpec = ModelSpec()
    anchors: AnchorSpec
    objective: OBJECTIVES.settings
    smoothing: SMOOTHINGS.settings = Field(default_factory=lambda: SMOOTHINGS["none"].Settings())
    optimizer: OPTIMIZERS.settings
    adapter: ADAPTERS.settings = Field(default_factory=lambda: ADAPTERS["full"].Settings())
    forget: tuple[str, ...] = ("all",)
    trainable: tuple[str, ...] = ("*",)
    steps: int = Count
    batch_size: int = Field(16, ge=1)
    checkpoints: Checkpoints = Checkpoints()
    until: str | None = None
    seed: int = Field(0, ge=0)

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"unknown: {task}.{nearest(task, TASKS)} (allowed: {', '.join(TASKS.titles)})")
        return task

    @model_validator(mode="after")
    def _valid_together(self) -> TrialSpec:
        check(self)
        return self

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """The settings that are not at their default, with what means the same written the same way."""
        plain = self.changed()
        plain["optimizer"] = self.optimizer.plainest().changed()
        return plain

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.canonical)

    @cached_property
    def entry(self) -> str:
        """The id without the seed: one line of the board."""
        return digest({key: value for key, value in self.canonical.items() if key != "seed"})

    @property
    def normalised(self) -> TrialSpec:
        """The same trial as its canonical form describes it."""
        return parse(TrialSpec, self.canonical)

    @property
    def until_knowledge(self) -> float | None:
        """The bound in `until`."""
        return None if self.until is None else float(_UNTIL.fullmatch(self.until)[1])


_UNTIL = re.compile(r"knowledge\s*<=\s*(0|1|0?\.\d+|1\.0*|0\.\d*)")


def check(spec: TrialSpec) -> None:
    """Settings that are valid alone but not together, in the one place that knows.

    Raises:
        ValueError: naming the key and what to change.
    """
    optimizer = spec.optimizer
    if isinstance(optimizer, Hybrid.Settings) and optimizer.kind == "alternate" and 0 < optimizer.zo_ratio < 1:
        zeroth = sum(layout(spec.steps, optimizer.zo_ratio, optimizer.block))
        if zeroth in (0, spec.steps):
            raise ValueError(
                f"optimizer.zo_ratio: {optimizer.zo_ratio} of {spec.steps} steps is {zeroth} zeroth-order steps, so "
                "nothing alternates. Take more steps, another ratio, or 0 or 1 for a pure optimizer"
            )
    asked, smoothing = ORDERS[OPTIMIZERS[optimizer.name].grade], SMOOTHINGS[spec.smoothing.name]
    if not asked & smoothing.smooths:
        changes = " and ".join(order.name.lower() + "s" for order in sorted(smoothing.smooths))
        raise ValueError(
            f"smoothing.name: {spec.smoothing.name} changes {changes}, which {optimizer.name} never asks for, so the "
            f"trial would be one without smoothing. {_others(asked)}"
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
        if not _UNTIL.fullmatch(spec.until):
            raise ValueError(f"until: not understood: {spec.until}. Write knowledge<=0.2")
        if spec.checkpoints.every is None:
            raise ValueError("until: is judged at kept checkpoints. Set checkpoints.every too")
    if spec.checkpoints.every is not None and spec.checkpoints.every > spec.steps:
        raise ValueError(f"checkpoints.every: {spec.checkpoints.every} is more than steps={spec.steps}")


ORDERS = {
    Grade.SECOND: {Order.GRADIENT, Order.CURVATURE},
    Grade.FIRST: {Order.GRADIENT},
    Grade.COMPRESSED: {Order.GRADIENT},
    Grade.ZEROTH: {Order.VALUE},
    Grade.HYBRID: {Order.VALUE, Order.GRADIENT},
}
"""What optimizers of each grade ask for."""


def _others(asked: set[Order]) -> str:
    names = [name for name, kind in SMOOTHINGS.items() if kind.smooths & asked]
    return f"With this optimizer go {', '.join(names)}"


class VllmSpec(Settings):
    """vLLM's engines, where `measure.engine` is `vllm` (see docs/engines.md).

    Attributes:
        engines: how many, for all trials together.
        tensor_parallel: GPUs of one engine, for models that one does not hold.
        batch_invariant: answers that are the same to the last bit whatever else is in the batch, at a price in speed
            (GPUs from compute capability 9.0 on).
        eager: start on a GPU in seconds, without compiling, and generate more slowly: for a handful of questions.
        gpu_memory: share of each GPU's memory that an engine takes; by default 0.9, and 0.45 of a GPU that it shares
            with a trial.
        cache_gib: memory for keys and values on a CPU, in GiB.
        threads: CPU threads of an engine.
    """

    engines: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    batch_invariant: bool = False
    eager: bool = False
    gpu_memory: float | None = Field(None, gt=0, le=1)
    cache_gib: float = Field(1.0, gt=0)
    threads: int = Field(1, ge=1)


class MeasureSpec(Settings):
    """How a trial's result is attacked and asked. No part of the trial's id: attacks can be added later.

    Attributes:
        attacks: `official`, the task's newest set; the name of an older set; or a list of attacks.
        splits: `test` for headlines; a search sees `dev`.
        engine: what answers: `transformers`, in the trial's process, or `vllm`, which generates text in engines of its
            own that all trials share (likelihoods stay with transformers).
        vllm: those engines.
        batch_tokens: positions per batch of the transformers engine, padding included.
        limit: items asked per probe, the first of each; all of them by default. Rows say how many there were.
        also: what is measured besides the task's own probes (`regrade ls extras`): general ability, perplexity, costly
            membership scores.
        match: floor of utility at which every headline is given once more, with the weights mixed back toward the
            target until they reach it on dev (see `suite.matching`); 0.9 is the board's. null leaves that out.
        landscape: diagnostics of where the unlearned weights lie (see `suite.landscape`); costly, so none by default.
    """

    attacks: str | tuple[dict[str, Any], ...] = "official"
    splits: tuple[Split, ...] = (Split.TEST,)
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmSpec = VllmSpec()
    batch_tokens: int = Field(4096, ge=1)
    limit: int | None = Field(None, ge=1)
    also: tuple[str, ...] = ()
    match: float | None = Field(0.9, gt=0, le=1)
    landscape: tuple[Literal["barrier", "sharpness", "distance"], ...] = ()

    @field_validator("also")
    @classmethod
    def _known_extras(cls, also: tuple[str, ...]) -> tuple[str, ...]:
        for name in also:
            if name not in EXTRAS:
                raise ValueError(f"unknown: {name}.{nearest(name, EXTRAS)} (allowed: {', '.join(EXTRAS)})")
        return also

    def attacks_for(self, task: str, split: Split) -> tuple[Attack, ...]:
        """The attacks on a split; `none` is always among them.

        Raises:
            SpecError: unknown set, attack or setting.
        """
        sets = TASKS[task].attack_sets
        if isinstance(self.attacks, str):
            name = TASKS[task].official if self.attacks == "official" else self.attacks
            if name not in sets:
                known = ", ".join(["official", *sets])
                raise SpecError(f"measure.attacks: unknown set: {name}.{nearest(name, sets)} (allowed: {known})")
            chosen: Iterable[Mapping[str, Any]] = sets[name][split]
        else:
            chosen = self.attacks
        attacks = {a.name: a for a in [attack({"name": "none"}), *map(attack, chosen)]}
        return tuple(attacks.values())


class RuntimeSpec(Settings):
    """Where a trial runs. Part of what its numbers depend on, but not of what it is.

    Attributes:
        device: `auto` takes a GPU where there is one.
        threads: CPU threads of one trial. Sums change with it, so it is set, not guessed.
        gradient_checkpointing: recompute each block's activations in the backward pass instead of keeping them. Takes
            less memory and more time, and changes no number.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    gradient_checkpointing: bool = False


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def trial(data: Mapping[str, Any]) -> TrialSpec:
    """A trial from a mapping of its own settings, in its normal form.

    A bare name stands for a section (`objective: npo`), for where the anchors come from (`anchors: published`), or for
    a list of one (`forget: people`).

    Raises:
        SpecError: naming the key, the allowed values and the nearest match.
    """
    plain = named(TrialSpec, data)
    if isinstance(plain.get("anchors"), str):
        plain["anchors"] = {"source": plain["anchors"]}
    for key in ("forget", "trainable"):
        if isinstance(plain.get(key), str):
            plain[key] = [plain[key]]
    return parse(TrialSpec, plain).normalised


def named(kind: type[Settings], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with a mapping wherever a bare name stands for a section, at any depth."""
    plain = dict(data)
    for key, field in kind.model_fields.items():
        section, members = settings_in(field.annotation)
        if members and isinstance(plain.get(key), str):
            plain[key] = {"name": plain[key]}
        if isinstance(plain.get(key), Mapping):
            chosen = section or members.get(plain[key].get("name", ""))
            plain[key] = named(chosen, plain[key]) if chosen else dict(plain[key])
    return plain
