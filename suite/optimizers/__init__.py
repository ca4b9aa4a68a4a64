"""Optimizers: one class each. The kinds of an optimizer's oracle queries are its grade."""

from __future__ import annotations

from typing import Any

from suite.config.registry import Registry
from suite.optimizers.adahessian import AdaHessian
from suite.optimizers.base import Optimizer, OptimizerSettings, Run
from suite.optimizers.compressed import (
    CompressedAdam,
    CompressedSGD,
    SignAdam,
    SignSGD,
)
from suite.optimizers.controls import FirstAtZONorm, FirstWithZONoise, RandomAtZONorm
from suite.optimizers.hybrid import Hybrid
from suite.optimizers.lbfgs import LBFGS
from suite.optimizers.parts import FIRST_ORDER, ZEROTH_ORDER
from suite.optimizers.second_order import Sophia

__all__ = ["OPTIMIZERS", "Optimizer", "OptimizerSettings", "Run", "base", "hybrid"]

OPTIMIZERS: Registry[type[Optimizer[Any]]] = Registry(
    "optimizer",
    [
        Sophia,
        AdaHessian,
        LBFGS,
        *FIRST_ORDER.values(),  # those that can be part of a hybrid are registered in parts.py
        CompressedAdam,
        CompressedSGD,
        SignAdam,
        SignSGD,
        *ZEROTH_ORDER.values(),
        Hybrid,
        FirstWithZONoise,
        FirstAtZONorm,
        RandomAtZONorm,
    ],
    Optimizer,
)
