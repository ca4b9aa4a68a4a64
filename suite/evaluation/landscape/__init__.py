"""Where a checkpoint lies: barriers between it and the anchors, the loss's curvature around it, how far it went.

These numbers describe and rank nobody: none of them says by itself that a model has forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.config.settings import nearest
from suite.evaluation.landscape.diagnostics import DIAGNOSTICS, DiagnosticInputs, LandscapeSettings, Reading
from suite.evaluation.landscape.surface import Texts
from suite.models.checkpoints import KeyedCheckpoint
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchors
from tasks.task import Subset, Task, examples_digest

__all__ = ["DIAGNOSTICS", "LandscapeSettings", "Reading", "landscape"]

KIND = "landscape"
VERSION = 1
"""Raised when the same weights and texts give other numbers."""


def landscape(
    names: Sequence[str],
    unlearned: KeyedCheckpoint,
    anchors: Anchors,
    task: Task,
    store: StageStore,
    runtime: RuntimeSpec,
    settings: LandscapeSettings | None = None,
) -> list[Reading]:
    """Readings of the named diagnostics about a checkpoint, each diagnostic a stage of its own.

    The stage says besides what belongs to no row: the curves of barriers, the radii of differences.

    Args:
        names: keys of `DIAGNOSTICS`.
        unlearned: where it lies is asked.

    Raises:
        SpecError: no such diagnostic.
    """
    settings = settings or LandscapeSettings()
    encoder, block = anchors.base.encoder, anchors.base.block(task)
    examples = {
        str(Subset.FORGET): task.forget_examples()[: settings.texts],
        str(Subset.RETAIN): task.retain[: settings.texts],
    }
    found: list[Reading] = []
    for name in names:
        if name not in DIAGNOSTICS:
            known = ", ".join(DIAGNOSTICS)
            raise SpecError(f"landscape: {name}: no such diagnostic.{nearest(name, DIAGNOSTICS)} (allowed: {known})")
        diagnostic = DIAGNOSTICS[name]
        inputs: dict[str, Any] = {
            "version": VERSION,
            "diagnostic": name,
            "weights": f"{unlearned.key}/{unlearned.part}",
            "settings": {key: getattr(settings, key) for key in diagnostic.settings},
            "numeric": Numeric.of(runtime).as_dict(),
        }
        if diagnostic.reads_anchors:
            inputs["anchors"] = anchors.id
        if diagnostic.reads_texts:
            inputs["texts"] = {subset: examples_digest(of) for subset, of in examples.items()}
            inputs |= {"template": str(encoder.template), "block": block}

        def compute(folder: Path, diagnostic=diagnostic) -> dict[str, Any]:
            with numeric(runtime) as device:
                encoded = {subset: encoder.examples(of, block) for subset, of in examples.items()}
                answered = {subset: [text for text in of if text.answer] for subset, of in encoded.items()}
                texts = {subset: Texts(of[: settings.texts], device) for subset, of in answered.items()}
                readings, more = diagnostic.compute(
                    DiagnosticInputs(unlearned.checkpoint, anchors, texts, settings, device)
                )
                return {"readings": [asdict(reading) for reading in readings], **more}

        found += [Reading(**reading) for reading in store.run(KIND, inputs, compute).meta["readings"]]
    return found
