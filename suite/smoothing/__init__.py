"""Which neighbourhood is asked: oracles around oracles."""

from __future__ import annotations

from suite.registry import Registry
from suite.smoothing.base import NoSmoothing, Smoothing
from suite.smoothing.sharpness_aware import SharpnessAware

__all__ = ["SMOOTHINGS", "Smoothing"]

SMOOTHINGS: Registry[type[Smoothing]] = Registry(
    "smoothing",
    [
        NoSmoothing,
        SharpnessAware,
    ],
)
