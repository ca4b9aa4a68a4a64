"""The diagnostics, one class each; what they compute with is in the files beside this one."""

from __future__ import annotations

import math
from typing import Any, Literal

from suite.config.settings import Settings as NamedSettings
from suite.evaluation.landscape.barrier import line
from suite.evaluation.landscape.base import Diagnostic, DiagnosticInputs, Reading, parameters
from suite.evaluation.landscape.distance import distance
from suite.evaluation.landscape.sharpness import CLEAR, RADII, by_differences, clear_radius, hutchinson
from suite.evaluation.landscape.surface import Surface
from suite.oracle.base import Diverged
from tasks.scoring import Estimate

WEIGHTS = "all"
"""The subset of readings about the weights alone, which depend on no texts."""

BELOW_ROUNDING = f"the loss differs by less than {CLEAR:g} roundings up to a radius of {RADII[-1]:g}"
NO_RETRAINED = "there is no retrained model: chance stands for it"


class Barrier(Diagnostic):
    """Barriers between the checkpoint and each anchor, and the loss curves along the lines between them."""

    class Settings(NamedSettings):
        name: Literal["barrier"] = "barrier"

    source = "arXiv 1912.05671, 2110.06296"
    reads_texts, reads_anchors = True, True
    settings = ("texts", "points")

    def compute(self, inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
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


class Sharpness(Diagnostic):
    """Two estimates of the Hessian's trace at the checkpoint, and the radius of the second."""

    class Settings(NamedSettings):
        name: Literal["sharpness"] = "sharpness"

    source = "Hutchinson 1990; arXiv 2406.03682"
    reads_texts, reads_anchors = True, False
    settings = ("texts", "probes", "seed")

    def compute(self, inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
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


class Distance(Diagnostic):
    """How far the checkpoint is from the target, and how much of that is in the direction of the retrained model."""

    class Settings(NamedSettings):
        name: Literal["distance"] = "distance"

    source = ""
    reads_texts, reads_anchors = False, True

    def compute(self, inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
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
