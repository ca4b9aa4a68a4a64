"""The two anchors of a task: the target, trained on everything, and the retrained model, without the forget set.

Both are trained here as stages, or given as checkpoints: the user's own, or published ones that the task knows by name.
For a task about pretrained knowledge, the target is the pretrained model itself. Where no retrained model exists, the
chance level of each headline replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leaderboard.board.schema import BETWEEN_PAIRS, CHANCE
from suite.config.canonical import digest
from suite.config.errors import UnsuitableError
from suite.config.runtime import RuntimeSpec
from suite.config.settings import nearest
from suite.models.checkpoints import Checkpoint, KeyedCheckpoint, SavedCheckpoint, weights_digest
from suite.models.finetuning import finetune
from suite.models.gradient_checkpointing import checkpoint_blocks
from suite.models.loading import BaseModel, base_model, resolve_model, save
from suite.models.settings import ModelSpec
from suite.spec.random_change import AnyTrial
from suite.spec.trial import AnchorSpec
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import StageStore
from tasks import TASKS
from tasks.task import Example, Task, Zero, examples_digest

VERSION = 1
"""Increased when the same recipe gives other weights."""


@dataclass(frozen=True)
class Anchor(KeyedCheckpoint):
    """One anchor. Its key is that of the stage that trained it, or that identified a given checkpoint.

    Attributes:
        weights: digest of the weights themselves.
    """

    weights: str = ""


@dataclass(frozen=True)
class Anchors:
    """Both anchors.

    Attributes:
        base: the model that they were trained from; where they were not trained here, the target itself.
        retrained: None where chance replaces it.
        further: the same with further seeds: the scale is the mean over all pairs.
        id: digest of the recipe (model, data, training, numeric environment), known before anything is trained.
    """

    base: BaseModel
    target: Anchor
    retrained: Anchor | None
    further: tuple[Anchors, ...] = ()

    @cached_property
    def id(self) -> str:
        return digest({"target": self.target.key, "retrained": self.retrained.key if self.retrained else CHANCE})

    @property
    def weights(self) -> str:
        """Digests of both models' weights; `chance` in place of a missing retrained model."""
        return f"{self.target.weights}:{self.retrained.weights if self.retrained else CHANCE}"

    @property
    def scale(self) -> tuple[str, str]:
        """The ids and the weights of all pairs, for the rows of what is measured on their scale."""
        pairs = (self, *self.further)
        targets = BETWEEN_PAIRS.join(pair.target.weights for pair in pairs)
        zero = BETWEEN_PAIRS.join(pair.retrained.weights for pair in pairs if pair.retrained) or CHANCE
        return BETWEEN_PAIRS.join(pair.id for pair in pairs), f"{targets}:{zero}"

    @property
    def subjects(self) -> dict[str, Anchor]:
        """The anchors that exist as models, by subject."""
        target = {"target": self.target}
        return target | {"retrained": self.retrained} if self.retrained else target

    def checkpoint(self, subject: str) -> Checkpoint:
        return self.subjects[subject].checkpoint


def prepare_anchors(spec: AnyTrial, task: Task, store: StageStore, runtime: RuntimeSpec) -> Anchors:
    """The anchors of a trial, trained here if they are not in the store.

    Raises:
        MissingError, ModelError, ...: a checkpoint cannot be found or used.
    """
    if not spec.anchors.trained:
        return _given_anchors(spec, store)
    first, *further = (_trained_pair(spec.model, recipe, task, store, runtime) for recipe in spec.anchors.pairs)
    return replace(first, further=tuple(further))


def _trained_pair(model: ModelSpec, recipe: AnchorSpec, task: Task, store: StageStore, runtime: RuntimeSpec) -> Anchors:
    """The anchors of one seed."""
    (seed,) = recipe.seeds
    base = base_model(model, task, seed, store)
    retain = task.retain * recipe.retain_repeats
    everything = (*task.forget_examples(), *retain)
    target = _train("target", base, everything, base.block(task), recipe, store, runtime)
    if task.anchored is Zero.CHANCE:
        return Anchors(base, target, None)
    return Anchors(base, target, _train("retrained", base, retain, base.block(task), recipe, store, runtime))


def named_checkpoints(spec: AnyTrial) -> tuple[str, str | None]:
    """Folders or hub ids of the given target and retrained model.

    Raises:
        UnsuitableError: the task knows no published checkpoints of this model.
    """
    if spec.anchors.target:
        return spec.anchors.target, spec.anchors.retrained
    if spec.anchors.source == "pretrained":
        return spec.model.name, None
    known = TASKS[spec.task].published
    if spec.model.name not in known:
        available = ", ".join(known) or "none"
        raise UnsuitableError(
            f"anchors.source: {spec.task} has no published checkpoints of {spec.model.name}."
            f"{nearest(spec.model.name, known)} (model.name with published checkpoints: {available})"
        )
    return known[spec.model.name]


def _given_anchors(spec: AnyTrial, store: StageStore) -> Anchors:
    target_name, retrained_name = named_checkpoints(spec)
    target = resolve_model(spec.model, target_name, "anchors.target")
    retrained = resolve_model(spec.model, retrained_name, "anchors.retrained") if retrained_name else None
    return Anchors(target, given_anchor(target, store), given_anchor(retrained, store) if retrained else None)


def given_anchor(model: BaseModel, store: StageStore) -> Anchor:
    """An existing checkpoint as an anchor. It is not copied: the store keeps only the digest of its weights."""
    inputs = {"version": VERSION, "model": dict(model.identity)}
    stage = store.run("given", inputs, lambda folder: {"weights": weights_digest(model.checkpoint.model())})
    return Anchor(model.checkpoint, stage.key, weights=stage.meta["weights"])


def _train(
    kind: str,
    base: BaseModel,
    texts: Sequence[Example],
    block: int | None,
    recipe: AnchorSpec,
    store: StageStore,
    runtime: RuntimeSpec,
) -> Anchor:
    (seed,), (epochs, lr) = recipe.seeds, recipe.training
    inputs = {
        "version": VERSION,
        "base": dict(base.identity),
        "texts": examples_digest(texts),
        "recipe": recipe.changed(),
        "numeric": Numeric.of(runtime).as_dict(),
        **({"block": block} if block else {}),
    }

    def compute(folder: Path) -> dict[str, Any]:
        with numeric(runtime) as device:
            model = base.checkpoint.model(device)
            if runtime.gradient_checkpointing:
                checkpoint_blocks(model)
            encoded = base.encoder.examples(texts, block)
            steps = epochs * -(-len(encoded) // recipe.batch_size)
            for _ in finetune(
                model,
                encoded,
                steps=steps,
                lr=lr,
                batch_size=recipe.batch_size,
                seed=seed,
                warmup=recipe.warmup,
                schedule="linear",
                betas=recipe.betas,
                weight_decay=recipe.weight_decay,
            ):
                pass
            save(model, base.encoder.tokenizer, folder)
            return {"steps": steps, "weights": weights_digest(model)}

    stage = store.run(kind, inputs, compute)
    return Anchor(SavedCheckpoint(stage.folder), stage.key, weights=stage.meta["weights"])
