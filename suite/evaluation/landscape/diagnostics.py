"""The diagnostics: each computes readings from a checkpoint, the anchors and some texts."""

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
"""The subset of readings about the weights alone, which depend on no texts."""

BELOW_ROUNDING = f"the loss differs by less than {CLEAR:g} roundings up to a radius of {RADII[-1]:g}"
NO_RETRAINED = "there is no retrained model: chance stands for it"


class LandscapeSettings(Settings):
    """How many texts, points and directions the diagnostics use.

    Attributes:
        texts: how many of the forget and of the retain texts are read, from the first; the cost grows with them.
        points: points on the line between two models, both ends included.
        probes: random directions of a trace estimate.
        seed: seed of the directions.
    """

    texts: int = Field(64, ge=1)
    points: int = Field(11, ge=3)
    probes: int = Field(8, ge=2)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One number about a checkpoint.

    Attributes:
        subset: the subset of the texts that it was computed on.
        n: number of texts (barriers) or directions (traces) that the standard error is over. For a distance, which has
            no error, the number of weights.
        direction: which way means more knowledge, as in the board's rows; None where neither does.
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
    """What a diagnostic may use."""

    checkpoint: Checkpoint
    anchors: Anchors
    texts: Mapping[str, Texts]
    settings: LandscapeSettings
    device: torch.device


@dataclass(frozen=True)
class Diagnostic:
    """One diagnostic, and what it depends on besides the checkpoint.

    Attributes:
        compute: gives the readings, and further results to store (JSON).
        settings: names of the settings that it reads.
    """

    compute: Callable[[DiagnosticInputs], tuple[list[Reading], dict[str, Any]]]
    reads_texts: bool
    reads_anchors: bool
    settings: tuple[str, ...] = ()


def barriers(inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
    """Barriers between the checkpoint and each anchor, and the loss curves along the lines between them."""
    readings, curves = [], {}
    model = inputs.checkpoint.model(inputs.device)
    own = parameters(inputs.checkpoint)
    for anchor in ("target", "retrained"):
        metric = f"barrier_to_{anchor}"
        if anchor not in inputs.anchors.subjects:
            readings += [Reading.of(metric, subset, Estimate.null(NO_RETRAINED)) for subset in inputs.texts]
            continue
        others = parameters(inputs.anchors.checkpoint(anchor))
        lines = line(model, own, others, list(inputs.texts.values()), inputs.settings.points)
        for subset, losses in zip(inputs.texts, lines, strict=True):
            readings.append(Reading.of(metric, subset, losses.barrier))
            curves[f"{metric}:{subset}"] = losses.curve if readings[-1].reason is None else None
    return readings, {"curves": curves}


def sharpness(inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
    """Two estimates of the Hessian's trace at the checkpoint, and the radius of the second."""
    readings, radii = [], {}
    probes, seed = inputs.settings.probes, inputs.settings.seed
    model = inputs.checkpoint.model(inputs.device).float()
    for subset, texts in inputs.texts.items():
        try:
            surface = Surface(model, texts)
            by_products = hutchinson(surface, probes, seed)
            radii[subset] = radius = clear_radius(surface, seed)
            unknown = Estimate.null(BELOW_ROUNDING, probes)
            estimates = by_products, by_differences(surface, probes, seed, radius) if radius else unknown
        except Diverged as error:
            estimates = (Estimate.null(str(error), probes),) * 2
        for method, estimate in zip(("hutchinson", "differences"), estimates, strict=True):
            readings.append(Reading.of(f"hessian_trace_{method}", subset, estimate))
    return readings, {"radii": radii}


def distances(inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
    """How far the checkpoint is from the target, and how much of that is in the direction of the retrained model."""
    retrained = inputs.anchors.retrained
    moved = distance(
        parameters(inputs.anchors.target.checkpoint),
        parameters(inputs.checkpoint),
        parameters(retrained.checkpoint) if retrained else None,
    )
    values = {
        "l2": moved.l2,
        "relative": moved.relative,
        "layer_max": moved.largest,
        "cosine_retrained": moved.cosine,
    }
    readings = []
    for name, value in values.items():
        reason = None
        if not math.isfinite(moved.l2):
            value, reason = None, "the weights are not finite"
        elif value is None:
            reason = "no way to compare: nothing moved" if retrained else NO_RETRAINED
        readings.append(Reading(f"distance_{name}", WEIGHTS, value, None, moved.weights, reason=reason))
    return readings, {}


def parameters(checkpoint: Checkpoint) -> State:
    """A checkpoint's weights by name on the CPU; tied weights appear once."""
    return {name: parameter.detach() for name, parameter in checkpoint.model().named_parameters()}


DIAGNOSTICS: dict[str, Diagnostic] = {
    "barrier": Diagnostic(barriers, True, True, ("texts", "points")),
    "sharpness": Diagnostic(sharpness, True, False, ("texts", "probes", "seed")),
    "distance": Diagnostic(distances, False, True),
}
