"""Checkpoints that are not what they should be, and processes that are killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from suite.config.errors import CheckpointError, EngineError
from suite.engines import Job, TransformersEngine
from suite.engines.questions import Questions
from suite.engines.vllm.model import StaleWeights
from suite.engines.vllm.process import PoolRequest
from suite.engines.vllm.transport import FileSource, MemorySource
from suite.models.checkpoints import SavedCheckpoint, TensorCheckpoint
from suite.models.layout import Layout, skeleton

K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def broken(untied, tmp_path):
    """A checkpoint with a change in its file."""

    def make(change) -> SavedCheckpoint:
        folder = tmp_path / "broken"
        shutil.copytree(untied(3), folder)
        change(folder / "model.safetensors")
        return SavedCheckpoint(folder)

    return make


def without(file):
    tensors = load_file(file)
    del tensors[K_PROJ]
    save_file(tensors, file)


def reshaped(file):
    tensors = load_file(file)
    tensors[K_PROJ] = tensors[K_PROJ][:, :-8].contiguous()
    save_file(tensors, file)


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize("probe", [slice(0, 1), slice(None)], ids=["generated", "all"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, f"lacks the tensor {K_PROJ}"),
        (reshaped, rf"{K_PROJ}: the checkpoint has shape \(32, 56\), the architecture \(32, 64\)"),
        (cut_short, "model.safetensors: cut short or damaged"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_the_engine_goes_on(
    change, message, probe, broken, untied, engines, encoder, probes, pids
):
    good = SavedCheckpoint(untied(0))
    subset = probes[probe]
    before, bad, after = engines().submit(
        [
            Job("before", good, subset),
            Job("bad", broken(change), subset),
            Job("after", good, subset),
        ]
    )
    # Results come as they are ready, and a refusal is ready at once.
    by_key = {one.key: one for one in (before, bad, after)}
    assert isinstance(by_key["bad"].error, CheckpointError) and not by_key["bad"].samples
    with pytest.raises(CheckpointError, match=message):
        raise by_key["bad"].error
    assert by_key["before"].samples == by_key["after"].samples != {}
    assert len(pids()) == 1


@pytest.mark.parametrize(
    "lost",
    [
        [K_PROJ],
        pytest.param(["model.norm.weight"], marks=pytest.mark.slow),
        pytest.param(["lm_head.weight"], marks=pytest.mark.slow),
    ],
    ids=lambda names: names[0],
)
def test_weights_that_do_not_arrive_never_become_an_answer(lost, untied, engines, encoder, probes, pool, pids):
    """vLLM accepts a checkpoint without one of its tensors. Here this costs two engines, and is reported."""
    engine, questions = engines(), Questions(encoder, probes[:1])
    good = SavedCheckpoint(untied(0))
    wanted = engine.continuations(good, questions)
    (engine_before,) = pids()
    other = SavedCheckpoint(untied(4))
    complete = FileSource.of(other, Layout.of(skeleton(other.path, torch.float32)))
    part = FileSource({file: tuple(n for n in names if n not in lost) for file, names in complete.files.items()})
    config = engine._engine_config(other, questions.longest, ray.get(pool.resources.remote()))
    reply = ray.get(pool.answer.remote(config, PoolRequest(part, engine._prompts(questions))))
    assert not reply.continuations
    with pytest.raises(StaleWeights, match="are not the checkpoint's"):
        raise reply.error
    assert engine_before not in pids()
    assert engine.continuations(good, questions) == wanted


def test_a_file_that_is_damaged_once_it_is_on_its_way(untied, engines, encoder, probes, pool, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(untied(5), folder)
    checkpoint = SavedCheckpoint(folder)
    engine, questions = engines(), Questions(encoder, probes[:1])
    weights = FileSource.of(checkpoint, Layout.of(skeleton(folder, torch.float32)))
    cut_short(folder / "model.safetensors")
    config = engine._engine_config(checkpoint, questions.longest, ray.get(pool.resources.remote()))
    reply = ray.get(pool.answer.remote(config, PoolRequest(weights, engine._prompts(questions))))
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        raise reply.error


@pytest.mark.parametrize("whom", ["engine", "desk"])
def test_a_process_that_is_killed_costs_no_sample_and_brings_none_twice(whom, untied, engines, encoder, probes, pool):
    """SIGKILL while jobs are pending: finished results stay, and the rest is run again elsewhere."""
    jobs = [Job(str(seed), SavedCheckpoint(untied(seed)), probes) for seed in range(6)]
    for i in (1, 4):  # from memory too
        state = jobs[i].checkpoint.state()
        jobs[i] = Job(jobs[i].key, TensorCheckpoint(state, jobs[i].checkpoint.path), probes)
    found = []
    for result in engines().submit(jobs):
        found.append(result)
        if len(found) == 2:
            scheduler, (engine, *_) = ray.get(pool.processes.remote())
            os.kill(engine if whom == "engine" else scheduler, signal.SIGKILL)
    assert sorted(one.key for one in found) == [job.key for job in jobs]
    plain = TransformersEngine(encoder, dtype="float32", device=torch.device("cpu"))
    wanted = {one.key: one.samples for one in plain.submit(jobs)}
    for one in found:
        assert one.error is None
        for probe in probes[:3]:
            assert one.samples[probe.name] == wanted[one.key][probe.name]


def test_an_engine_that_sleeps_between_questions_answers_like_one_that_does_not(untied, engines, encoder, probes, pool):
    """On a CPU nothing is freed; the test is that weights come back and requests are served again."""
    engine, questions, checkpoint = engines(), Questions(encoder, probes[:2]), SavedCheckpoint(untied(0))
    wanted = {seed: engine.continuations(SavedCheckpoint(untied(seed)), questions) for seed in (0, 1)}
    config = engine._engine_config(checkpoint, questions.longest, ray.get(pool.resources.remote()))
    layout, prompts = Layout.of(skeleton(checkpoint.path, torch.float32)), engine._prompts(questions)
    for seed in (0, 1, 0, 0):
        pool_request = PoolRequest(FileSource.of(SavedCheckpoint(untied(seed)), layout), prompts)
        reply = ray.get(pool.answer.remote(dataclasses.replace(config, sleeps=True), pool_request))
        assert reply.error is None
        assert engine._continuations(reply) == wanted[seed]


@pytest.mark.slow
def test_an_architecture_that_vllm_does_not_run_is_told(made, engines, probes):
    folder = made("llama", 0, head_dim=20, hidden_size=40)
    (found,) = engines().submit([Job("x", SavedCheckpoint(folder), probes[:1])])
    with pytest.raises(EngineError, match="head"):
        raise found.error


def test_weights_in_memory_are_checked_like_those_in_files(untied):
    state = SavedCheckpoint(untied(0)).state()
    layout = Layout.of(skeleton(untied(0), torch.float32))
    assert MemorySource.of(state, layout).arrays.keys() == state.keys()
    del state[K_PROJ]
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        MemorySource.of(state, layout)
