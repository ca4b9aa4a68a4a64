"""How the oracle's answers are used: one class per optimizer, told apart by what it asks."""

from __future__ import annotations

from suite.optimizers.base import Optimizer, OptimizerSettings, Plan
from suite.optimizers.compressed import SignAdam, SignSGD
from suite.optimizers.first_order import SGD, Adam, MeanOfSigns
from suite.optimizers.hybrid import Hybrid
from suite.optimizers.second_order import Sophia
from suite.optimizers.zeroth_order import RAdaZO
from suite.registry import Registry

__all__ = ["OPTIMIZERS", "Optimizer", "OptimizerSettings", "Plan"]

OPTIMIZERS: Registry[type[Optimizer]] = Registry(
    "optimizer",
    [
        Sophia,
        Adam,
        SGD,
        MeanOfSigns,
        SignAdam,
        SignSGD,
        RAdaZO,
        Hybrid,
    ],
)
