"""Code in a model's folder is executed by no part of the vLLM engine."""

from __future__ import annotations

import shutil

import pytest
import ray
import torch

from suite.config.errors import ModelError
from suite.engines import Job
from suite.engines.questions import Questions
from suite.engines.vllm.model import EngineConfig
from suite.engines.vllm.process import PoolRequest
from suite.engines.vllm.transport import FileSource
from suite.models.checkpoints import SavedCheckpoint
from suite.models.layout import Layout, skeleton
from tests.support.hostile_folders import AUTO_MAP, changed, with_code


@pytest.fixture
def with_evil(untied, tmp_path):
    """A copy of a model with code, and with these settings."""

    def make(**values):
        folder = tmp_path / "evil"
        shutil.copytree(untied(0), folder)
        changed(folder / "config.json", auto_map=AUTO_MAP, **values)
        return folder, with_code(folder)

    return make


@pytest.mark.slow
def test_a_leftover_auto_map_changes_no_answer(with_evil, untied, engines, encoder, probes):
    folder, canary = with_evil()
    engine, questions = engines(), Questions(encoder, probes[:1])
    found, wanted = (engine.continuations(SavedCheckpoint(one), questions) for one in (folder, untied(0)))
    assert found == wanted
    assert not canary.exists()


def test_a_model_that_needs_its_own_code_never_reaches_vllm(with_evil, engines, probes):
    folder, canary = with_evil(model_type="evil", architectures=["Evil"])
    (found,) = engines().submit([Job("x", SavedCheckpoint(folder), probes[:1])])
    with pytest.raises(ModelError, match="nothing that a model carries is executed"):
        raise found.error
    assert not canary.exists()


@pytest.mark.slow
def test_vllm_itself_refuses_such_a_model(with_evil, untied, engines, encoder, probes, pool):
    folder, canary = with_evil(model_type="evil", architectures=["Evil"])
    engine, good = engines(), SavedCheckpoint(untied(0))
    weights = FileSource.of(good, Layout.of(skeleton(good.path, torch.float32)))
    request = PoolRequest(weights, engine._prompts(Questions(encoder, probes[:1])))
    reply = ray.get(
        pool.answer.remote(EngineConfig(folder, "evil", "float32", 256, cache_gib=0.25, eager=True), request)
    )
    assert reply.error is not None and not reply.continuations
    assert not canary.exists()
