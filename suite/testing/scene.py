"""What an attack is carried out on: a tiny model that has been taught the task `pocket`, and its test questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from suite.attacks import AttackContext, Subject
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.models.checkpoints import State
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import Anchors, prepare_anchors
from tasks import TASKS
from tasks.task import Split

SMALL: dict[str, Any] = {
    "task": "pocket",
    "model": {"tiny": {"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 512}},
    "anchors": {"epochs": 1, "lr": 3e-3},
    "objective": {"name": "npo"},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "steps": 4,
    "batch_size": 4,
}
"""A trial that takes a second: the real path with a model too small to remember anything."""

UP_PROJ, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def small_anchors(store: Path) -> Anchors:
    """The small trial's anchors, trained where the store at this place has none."""
    return prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(store).stages, RuntimeSpec())


def scene_of(anchors: Anchors, items: int | None = None) -> tuple[Subject, AttackContext]:
    """The target with pocket's test probes, and its context.

    Args:
        items: questions of each probe; all of them by default.
    """
    task, cpu = TASKS["pocket"].build(), torch.device("cpu")
    encoder, target = anchors.base.encoder, anchors.target
    engine = TransformersEngine(encoder, dtype="float32", device=cpu)
    context = AttackContext(engine, encoder, task, 0, cpu, target=target.checkpoint, target_key=target.key)
    probes = tuple(replace(probe, items=probe.items[:items]) for probe in task.probes_of(Split.TEST))
    return Subject(target.checkpoint, probes), context


def spoilt(kind: str, state: State) -> State:
    """Weights that are not finite (`nan`, `inf`, `-inf`), or finite ones with which a forward pass overflows."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    if kind == "overflow":
        state[NORM].fill_(3e38)
    else:
        state[UP_PROJ].view(-1)[7] = float(kind)
    return state
