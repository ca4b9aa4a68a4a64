"""The diagnostics: each turns a checkpoint, the anchors and some texts into readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from suite.config.settings import Settings
from suite.evaluation.landscape.barrier import line
from suite.evaluation.landscape.distance import distance
from suite.evaluation.landscape.sharpness import CLEAR, RADII, by_differences, clear_radius, hutchinson
from suite.evaluation.landscape.surface import Surface, Texts
from suite.models.checkpoints import Checkpoint, State
from suite.oracle.base import Diverged
from suite.training.anchors import Anchors
from tasks.scoring import Estimate

WEIGHTS = "all"
"""The subset of what is about the weights alone, whatever text is read."""

DROWNED = f"the loss differs by less than {CLEAR:g} roundings up to a radius of {RADII[-1]:g}"
NO_RETRAINED = "there is no retrained model: chance stands for it"


class LandscapeSettings(Settings):
    """How much is looked at.

    Attributes:
        texts: the first so many of the forget and of the retain texts, since the cost grows with them.
        points: places on a line between two models, both ends among them.
        probes: random directions of a trace.
        seed: of the directions.
    """

    texts: int = Field(64, ge=1)
    points: int = Field(11, ge=3)
    probes: int = Field(8, ge=2)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One number about a checkpoint.

    Attributes:
        subset: whose texts it is about.
        n: what the standard error is over: texts (barriers), directions (traces). Weights of a distance, which has no
            error.
        direction: which way is more knowledge, as in the board's rows; None where neither is.
        reason: why there is no value.
    """

    metric: str
    subset: str
    value: float | None
    stderr: float | None
    n: int
    direction: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, metric: str, subset: str, estimate: Estimate) -> Reading:
        return cls(metric, subset, estimate.value, estimate.stderr, estimate.n, reason=estimate.reason)


@dataclass(frozen=True)
class DiagnosticInputs:
    """What a diagnostic may look at."""

    checkpoint: Checkpoint
    anchors: Anchors
    texts: Mapping[str, Texts]
    settings: LandscapeSettings
    device: torch.device


@dataclass(frozen=True)
class Diagnostic:
    """One diagnostic, and what it depends on besides the checkpoint.

    Attributes:
        compute: readings, and what else is worth keeping (JSON).
        settings: those that it reads.
    """

    compute: Callable[[DiagnosticInputs], tuple[list[Reading], dict[str, Any]]]
    reads_texts: bool
    reads_anchors: bool
    settings: tuple[str, ...] = ()


def barriers(inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
    """Barriers between the checkpoint and each anchor, and the curves on the way there."""
    readings, curves = [], {}
    model = inputs.checkpoint.model(inputs.device)
    here = parameters(inputs.checkpoint)
    for anchor in ("target", "retrained"):
        metric = f"barrier_to_{anchor}"
        if anchor not in inputs.anchors.subjects:
            readings += [Reading.of(metric, subset, Estimate.null(NO_RETRAINED)) for subset in inputs.texts]
            continue
        there = parameters(inputs.anchors.checkpoint(anchor))
        found = line(model, here, there, list(inputs.texts.values()), inputs.settings.points)
        for subset, way in zip(inputs.texts, found, strict=True):
            readings.append(Reading.of(metric, subset, way.barrier))
            curves[f"{metric}:{subset}"] = way.curve if readings[-1].reason is None else None
    return readings, {"curves": curves}


def sharpness(inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
    """Trace of the Hessian around the checkpoint, in two ways, and the radius of the second."""
    readings, radii = [], {}
    probes, seed = inputs.settings.probes, inputs.settings.seed
    model = inputs.checkpoint.model(inputs.device).float()
    for subset, texts in inputs.texts.items():
        try:
            surface = Surface(model, texts)
            found = [hutchinson(surface, probes, seed)]
            radii[subset] = radius = clear_radius(surface, seed)
            found.append(by_differences(surface, probes, seed, radius) if radius else Estimate.null(DROWNED, probes))
        except Diverged as error:
            found = [Estimate.null(str(error), probes)] * 2
        for way, estimate in zip(("hutchinson", "differences"), found, strict=True):
            readings.append(Reading.of(f"hessian_trace_{way}", subset, estimate))
    return readings, {"radii": radii}


def distances(inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
    """How far the checkpoint is from the target, and how much of that was towards the retrained model."""
    retrained = inputs.anchors.retrained
    found = distance(
        parameters(inputs.anchors.target.checkpoint),
        parameters(inputs.checkpoint),
        parameters(retrained.checkpoint) if retrained else None,
    )
    values = {
        "l2": found.l2,
        "relative": found.relative,
        "layer_max": found.largest,
        "cosine_retrained": found.cosine,
    }
    readings = []
    for name, value in values.items():
        reason = None
        if not math.isfinite(found.l2):
            value, reason = None, "the weights are not finite"
        elif value is None:
            reason = "no way to compare: nothing moved" if retrained else NO_RETRAINED
        readings.append(Reading(f"distance_{name}", WEIGHTS, value, None, found.weights, reason=reason))
    return readings, {}


def parameters(checkpoint: Checkpoint) -> State:
    """A checkpoint's weights by name on the CPU, tied ones once."""
    return {name: parameter.detach() for name, parameter in checkpoint.model().named_parameters()}


DIAGNOSTICS: dict[str, Diagnostic] = {
    "barrier": Diagnostic(barriers, True, True, ("texts", "points")),
    "sharpness": Diagnostic(sharpness, True, False, ("texts", "probes", "seed")),
    "distance": Diagnostic(distances, False, True),
}
