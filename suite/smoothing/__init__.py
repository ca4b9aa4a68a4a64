"""Smoothings: oracles that wrap another oracle and evaluate the loss in a neighbourhood of the weights."""

from __future__ import annotations

from typing import Any

from suite.config.registry import Registry
from suite.smoothing.averaging import ExponentialMovingAverage, WeightAveraging
from suite.smoothing.base import NoSmoothing, Smoothing, SmoothingSettings
from suite.smoothing.extrapolation import Extrapolation
from suite.smoothing.invariance import Invariance
from suite.smoothing.penalties import CurvaturePenalty, GradientPenalty
from suite.smoothing.randomized import RandomizedSmoothing
from suite.smoothing.sharpness_aware import AdaptiveSharpnessAware, SharpnessAware
from suite.smoothing.stable_un import StableUnlearning
from suite.smoothing.universal_sam import UniversalSharpness

__all__ = ["SMOOTHINGS", "Smoothing", "SmoothingSettings"]

SMOOTHINGS: Registry[type[Smoothing[Any]]] = Registry(
    "smoothing",
    [
        NoSmoothing,
        SharpnessAware,
        AdaptiveSharpnessAware,
        RandomizedSmoothing,
        GradientPenalty,
        CurvaturePenalty,
        UniversalSharpness,
        StableUnlearning,
        Invariance,
        Extrapolation,
        WeightAveraging,
        ExponentialMovingAverage,
    ],
    Smoothing,
)
