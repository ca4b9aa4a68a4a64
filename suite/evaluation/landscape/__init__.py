"""The loss landscape around a checkpoint: barriers to the anchors, curvature of the loss, distances between weights.

These numbers describe models but do not rank them: none shows by itself that a model has forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from suite.config.errors import SpecError
from suite.config.registry import Registry
from suite.config.runtime import RuntimeSpec
from suite.config.settings import nearest
from suite.evaluation.landscape.base import Diagnostic, DiagnosticInputs, LandscapeSettings, Reading
from suite.evaluation.landscape.diagnostics import Barrier, Distance, Sharpness
from suite.evaluation.landscape.surface import Texts
from suite.models.checkpoints import KeyedCheckpoint
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchors
from tasks.plain_text import cut
from tasks.task import Subset, Task, examples_digest

__all__ = ["DIAGNOSTICS", "Diagnostic", "LandscapeSettings", "Reading", "check_names", "landscape"]

DIAGNOSTICS: Registry[type[Diagnostic]] = Registry("diagnostic", [Barrier, Sharpness, Distance], Diagnostic)

KIND = "landscape"
VERSION = 1
"""Increased when the same weights and texts give other numbers."""


def check_names(names: Sequence[str]) -> None:
    """Check that there are such diagnostics.

    Raises:
        SpecError: naming the one that there is not.
    """
    for name in names:
        if name not in list(DIAGNOSTICS):
            known = ", ".join(DIAGNOSTICS)
            raise SpecError(
                f"landscape: {cut(name)}: no such diagnostic.{nearest(name, DIAGNOSTICS)} (allowed: {known})"
            )


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

    The stages also store what belongs to no row: the curves of barriers and the radii of loss differences.

    Args:
        names: keys of `DIAGNOSTICS`.
        unlearned: the checkpoint to measure.

    Raises:
        SpecError: no such diagnostic.
    """
    check_names(names)
    settings = settings or LandscapeSettings()
    encoder, block = anchors.base.encoder, anchors.base.block(task)
    examples = {
        str(Subset.FORGET): task.forget_examples()[: settings.texts],
        str(Subset.RETAIN): task.retain[: settings.texts],
    }
    readings: list[Reading] = []
    for name in names:
        diagnostic = DIAGNOSTICS[name]()
        inputs: dict[str, Any] = {
            "version": VERSION,
            "diagnostic": name,
            "weights": f"{unlearned.key}/{unlearned.part}",
            "settings": {key: getattr(settings, key) for key in diagnostic.settings},
            "numeric": Numeric.of(runtime).as_dict(),
        }
        if package := DIAGNOSTICS.package(name):
            inputs["package"] = package
        if diagnostic.revision:
            inputs["revision"] = diagnostic.revision
        if diagnostic.reads_anchors:
            inputs["anchors"] = anchors.id
        if diagnostic.reads_texts:
            inputs["texts"] = {subset: examples_digest(texts) for subset, texts in examples.items()}
            inputs |= {"template": str(encoder.template), "block": block}

        def compute(folder: Path, diagnostic=diagnostic) -> dict[str, Any]:
            with numeric(runtime) as device:
                texts: dict[str, Texts] = {}
                for subset, subset_examples in examples.items():
                    encoded = encoder.examples(subset_examples, block)
                    texts[subset] = Texts([text for text in encoded if text.answer][: settings.texts], device)
                computed, more = diagnostic.compute(
                    DiagnosticInputs(unlearned.checkpoint, anchors, texts, settings, device)
                )
                return {"readings": [asdict(reading) for reading in computed], **more}

        readings += [Reading(**reading) for reading in store.run(KIND, inputs, compute).meta["readings"]]
    return readings
