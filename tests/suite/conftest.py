"""Fixtures of the tests of attacks: the small trial's anchors, and a subject with its context."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.attacks import AttackContext, Subject
from suite.testing.scene import scene_of
from suite.testing.scene import small_anchors as prepared
from suite.training.anchors import Anchors
from tests.support.hostile_folders import adapter_folder, model_folder


@pytest.fixture(scope="module")
def small_anchors(warm_store: Path) -> Anchors:
    """The small trial's anchors."""
    return prepared(warm_store)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model as it should be, to be copied."""
    return model_folder(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def good_adapter(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter of that model."""
    return adapter_folder(tmp_path_factory.mktemp("good") / "adapter", good)


@pytest.fixture(scope="module")
def scene(small_anchors: Anchors) -> tuple[Subject, AttackContext]:
    """The target with pocket's test probes, and its context."""
    return scene_of(small_anchors)
