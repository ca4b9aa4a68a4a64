"""The weights of a null trial: the target plus a Gaussian direction, scaled to a norm."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suite.config.errors import UnsuitableError
from suite.config.runtime import RuntimeSpec
from suite.models.checkpoints import weights_digest
from suite.models.loading import save
from suite.oracle import noise
from suite.oracle.base import Queries
from suite.spec.random_change import RandomChange
from suite.storage.environment import Numeric, numeric, peak_bytes
from suite.storage.stages import Artifact, StageStore
from suite.training.anchors import Anchors
from suite.training.weight_change import change

VERSION = 1
"""Increased when the same null trial gives other weights or more metadata."""
KEY = 1 << 41
"""Separates these directions' keys from those of optimizers."""
CLOSE = 0.01
"""How far the norm may be from the one that is asked for, as a share of it."""
ATTEMPTS = 12
"""Scales that are tried. Rounding to few bits lengthens a small change: each attempt halves the error at least."""


def randomly_changed(spec: RandomChange, anchors: Anchors, store: StageStore, runtime: RuntimeSpec) -> Artifact:
    """The changed weights as a stage, with the metadata that a stage of unlearning has."""
    inputs = {
        "version": VERSION,
        "start": anchors.target.key,
        "anchors": anchors.weights,
        "norm": spec.random_change,
        "trainable": list(spec.trainable),
        "seed": spec.seed,
        "numeric": Numeric.of(runtime).as_dict(),
    }

    def compute(folder: Path) -> dict[str, Any]:
        with numeric(runtime) as device:
            started = time.perf_counter()
            model = anchors.checkpoint("target").model(device)
            before = _chosen(model, spec)
            _change(model, before, spec.random_change, _key(anchors, spec.seed))
            finite = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
            observed = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes(device)}
            save(model, anchors.base.encoder.tokenizer, folder / "final")
            changed = change(before, model)
            return {
                "status": "ok" if finite else "diverged",
                "reason": None if finite else "weights are not finite after the change",
                "steps_done": 0,
                "kept": [],
                "weights": weights_digest(model),
                "cost": Queries().as_dict(),
                **asdict(changed if finite else changed.for_nonfinite_weights()),
                "drowned": None,
                "observed": observed,
            }

    return store.run("random_change", inputs, compute)


def _chosen(model: torch.nn.Module, spec: RandomChange) -> dict[str, Tensor]:
    """Copies of the parameters to change, by name."""
    found = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if any(fnmatch(name, pattern) for pattern in spec.trainable)
    }
    if not found:
        raise UnsuitableError(f"trainable: {list(spec.trainable)} matches no parameter")
    return found


def _key(anchors: Anchors, seed: int) -> noise.Key:
    """The direction's key follows from the anchors' weights and the seed alone, so it is the same on any machine."""
    name = hashlib.sha256(anchors.weights.encode()).digest()
    return (KEY, int.from_bytes(name[:8], "big"), seed)


@torch.no_grad()
def _change(model: torch.nn.Module, before: Mapping[str, Tensor], norm: float, key: noise.Key) -> None:
    """Move the parameters so that their change has this norm once it is rounded to their dtype, or nearly so."""
    parameters = dict(model.named_parameters())
    drawn = sum(noise.fill([_drawn_for(origin)], key, index)[0] for index, origin in enumerate(before.values()))
    scale = norm / drawn**0.5
    for _ in range(ATTEMPTS):
        square = 0.0
        for index, (name, origin) in enumerate(before.items()):
            # Drawn on the CPU, tensor by tensor: the same numbers on any machine, and never all of them in memory.
            direction = _drawn_for(origin)
            noise.fill([direction], key, index)
            moved = origin.float().add(direction.to(origin.device), alpha=scale)
            parameters[name].copy_(moved)
            square += float((parameters[name].double() - origin.double()).square().sum())
        length = square**0.5
        if not abs(length / norm - 1) > CLOSE:  # or it is not finite
            return
        scale *= min(10.0, max(0.1, norm / length)) if length else 10.0


def _drawn_for(origin: Tensor) -> Tensor:
    return torch.empty(origin.shape)
