"""The two anchors of a task: the target, taught everything, and the retrained model, which never saw the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from suite.checkpoints import SavedCheckpoint, weights_digest
from suite.environment import Numeric, numeric
from suite.finetuning import finetune
from suite.models import BaseModel, base_model, save
from suite.spec import AnchorSpec, RuntimeSpec, TrialSpec, digest
from suite.stages import Artifact, StageStore
from tasks.task import Example, Task, examples_digest

VERSION = 1
"""Raised when the same recipe gives other weights."""


@dataclass(frozen=True)
class Anchors:
    """Both anchors, published as stages.

    Attributes:
        id: of the recipe (model, data, training, numeric environment), known before anything is trained.
    """

    base: BaseModel
    target: Artifact
    retrained: Artifact

    @cached_property
    def id(self) -> str:
        return digest({"target": self.target.key, "retrained": self.retrained.key})

    @property
    def weights(self) -> str:
        """Digests of both models' weights."""
        return f"{self.target.meta['weights']}:{self.retrained.meta['weights']}"

    def checkpoint(self, subject: str) -> SavedCheckpoint:
        return SavedCheckpoint((self.target if subject == "target" else self.retrained).folder)


def anchors(spec: TrialSpec, task: Task, store: StageStore, runtime: RuntimeSpec) -> Anchors:
    """The anchors of a trial, trained if nobody has published them."""
    base = base_model(spec.model, task, spec.anchors.seed, store)
    retain = task.retain * spec.anchors.retain_repeats
    everything = (*task.forget_examples(), *retain)
    target = _train("target", base, everything, spec.anchors, store, runtime)
    return Anchors(base, target, _train("retrained", base, retain, spec.anchors, store, runtime))


def _train(
    kind: str, base: BaseModel, texts: Sequence[Example], recipe: AnchorSpec, store: StageStore, runtime: RuntimeSpec
) -> Artifact:
    inputs = {
        "version": VERSION,
        "base": dict(base.identity),
        "texts": examples_digest(texts),
        "recipe": recipe.changed(),
        "numeric": Numeric.of(runtime).as_dict(),
    }

    def compute(folder: Path) -> dict[str, Any]:
        with numeric(runtime) as device:
            model = base.checkpoint.model(device)
            encoded = [base.encoder.example(text) for text in texts]
            steps = recipe.epochs * -(-len(encoded) // recipe.batch_size)
            for _ in finetune(
                model,
                encoded,
                steps=steps,
                lr=recipe.lr,
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                warmup=recipe.warmup,
                decay=True,
                betas=recipe.betas,
                weight_decay=recipe.weight_decay,
            ):
                pass
            save(model, base.encoder.tokenizer, folder)
            return {"steps": steps, "weights": weights_digest(model)}

    return store.run(kind, inputs, compute)
