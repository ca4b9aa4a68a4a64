"""Fixtures of the tests of attacks: the small trial's anchors, and a subject with its context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from suite.attacks import AttackContext, Subject
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import Anchors, prepare_anchors
from tasks import TASKS
from tasks.task import Split
from tests.support.hostile_folders import adapter_folder, model_folder
from tests.support.small import SMALL


@pytest.fixture(scope="module")
def small_anchors(warm_store: Path) -> Anchors:
    """The small trial's anchors."""
    return prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(warm_store).stages, RuntimeSpec())


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
    task, cpu = TASKS["pocket"].build(), torch.device("cpu")
    encoder, target = small_anchors.base.encoder, small_anchors.target
    engine = TransformersEngine(encoder, dtype="float32", device=cpu)
    context = AttackContext(engine, encoder, task, 0, cpu, target=target.checkpoint, target_key=target.key)
    return Subject(target.checkpoint, task.probes_of(Split.TEST)), context
