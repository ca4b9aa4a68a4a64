"""Unlearning objectives: forget and retain losses as functions of a model and a batch."""

from __future__ import annotations

from typing import Any

from suite.config.registry import Registry
from suite.objectives.ascent import GradientAscent, GradientDifference
from suite.objectives.base import Objective, ObjectiveSettings
from suite.objectives.distillation import CEU, Undial
from suite.objectives.max_entropy import MaximumEntropy
from suite.objectives.misdirection import RMU
from suite.objectives.preference import DPO, NPO, SimNPO
from suite.objectives.primal_dual import PDU
from suite.objectives.reference import Reference
from suite.objectives.task_vector import TaskVector
from suite.objectives.weighted import WGA, SatImp

__all__ = ["OBJECTIVES", "Objective", "ObjectiveSettings", "Reference", "base", "task_vector"]

OBJECTIVES: Registry[type[Objective[Any]]] = Registry(
    "objective",
    [
        GradientAscent,
        GradientDifference,
        NPO,
        SimNPO,
        DPO,
        MaximumEntropy,
        WGA,
        SatImp,
        Undial,
        CEU,
        PDU,
        RMU,
        TaskVector,
    ],
    Objective,
)
