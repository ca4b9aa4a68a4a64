"""Conformance: what every method of an axis must do, as classes of tests that any package can run on its own.

    from suite.testing import OptimizerConformance

    class TestMine(OptimizerConformance):
        entry = Mine

needs pytest. Nothing else in the suite imports this room.
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError:
    raise ModuleNotFoundError("suite.testing: conformance tests run under pytest. pip install pytest") from None

pytest.register_assert_rewrite(
    *(f"suite.testing.{each}" for each in "adapters attacks metrics objectives optimizers smoothings tasks".split())
)

from suite.testing.adapters import AdapterConformance  # noqa: E402 - after the registration
from suite.testing.attacks import AttackConformance  # noqa: E402
from suite.testing.base import Case  # noqa: E402
from suite.testing.metrics import MetricConformance  # noqa: E402
from suite.testing.objectives import ObjectiveConformance  # noqa: E402
from suite.testing.optimizers import OptimizerConformance  # noqa: E402
from suite.testing.smoothings import SmoothingConformance  # noqa: E402
from suite.testing.tasks import TaskConformance  # noqa: E402

__all__ = [
    "AdapterConformance",
    "AttackConformance",
    "Case",
    "MetricConformance",
    "ObjectiveConformance",
    "OptimizerConformance",
    "SmoothingConformance",
    "TaskConformance",
]
