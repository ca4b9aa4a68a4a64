"""What forgetting means: forget and retain losses, as functions of a model and a batch."""

from __future__ import annotations

from suite.objectives.ascent import GradientAscent, GradientDifference
from suite.objectives.base import Objective, ObjectiveSettings, Reference
from suite.objectives.preference import NPO, SimNPO
from suite.registry import Registry

__all__ = ["OBJECTIVES", "Objective", "ObjectiveSettings", "Reference"]

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    [
        GradientAscent,
        GradientDifference,
        NPO,
        SimNPO,
    ],
)
