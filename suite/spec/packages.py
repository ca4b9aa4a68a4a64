"""The packages of methods that are not Regrade's own.

A spec holds names only, and what a name stands for may change with the package that brings it; so stages and rows say
which one it was.
"""

from __future__ import annotations

from typing import Any

from suite.adapters import ADAPTERS
from suite.config.registry import Registry
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.smoothing import SMOOTHINGS
from suite.spec.random_change import AnyTrial, RandomChange

AXES: dict[str, Registry[Any]] = {
    "objective": OBJECTIVES,
    "smoothing": SMOOTHINGS,
    "optimizer": OPTIMIZERS,
    "adapter": ADAPTERS,
}


def packages_of(spec: AnyTrial) -> dict[str, str]:
    """By axis the package, with its version, of a trial's method; without those of Regrade's own."""
    if isinstance(spec, RandomChange):
        return {}
    found = {axis: registry.package(getattr(spec, axis).name) for axis, registry in AXES.items()}
    return {axis: package for axis, package in found.items() if package}
