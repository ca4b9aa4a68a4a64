"""Builds the engine that the settings name, and says what it needs. No other module knows engines by name."""

from __future__ import annotations

from dataclasses import replace

import torch

from suite.cluster.placement import Placement, PoolResources, local_resources, plan_placement
from suite.config.runtime import RuntimeSpec
from suite.engines.base import Engine
from suite.engines.settings import EngineSettings
from suite.engines.transformers.engine import TransformersEngine
from suite.engines.transformers.eos_masked import EosMaskedEngine
from suite.engines.vllm import build
from suite.models.checkpoints import Heads
from suite.models.encoding import Encoder


def chosen_engine(settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Engine:
    """Build the engine that the settings name, for models of this dtype.

    Args:
        device: the device on which this process computes.

    Raises:
        NotInstalledError: it cannot be used here.
    """
    if settings.engine == "vllm":
        from suite.engines.vllm.engine import VllmEngine

        return VllmEngine(settings, encoder, dtype=dtype, device=device)
    kind = EosMaskedEngine if settings.engine == "transformers-eos-masked" else TransformersEngine
    return kind(encoder, dtype=dtype, device=device, batch_tokens=settings.batch_tokens)


def pool_resources(settings: EngineSettings) -> PoolResources:
    """The resources that the engine needs beside the trials.

    Raises:
        NotInstalledError: vLLM is not installed.
    """
    return build.pool_resources(settings.vllm) if settings.engine == "vllm" else PoolResources(engines=0)


def check_here(settings: EngineSettings, runtime: RuntimeSpec) -> Placement:
    """Check that this machine has enough resources for a trial and for the engine.

    Raises:
        ClusterError, NotInstalledError: it has not. The message says what to change.
    """
    here, pool = local_resources(), pool_resources(settings)
    if pool.engines:
        build.usable()
    else:  # one trial runs here, however many threads it has
        here = replace(here, cpus=max(here.cpus, runtime.threads))
    return plan_placement(here, pool, runtime)


def check_heads(settings: EngineSettings, heads: Heads, where: str) -> None:
    """Check that the engine can run a model's attention, before it is started in vain.

    Args:
        where: the setting that names the model, for the message.

    Raises:
        UnsuitableError: it cannot.
    """
    if settings.engine == "vllm":
        build.check_heads(heads, settings.vllm.tensor_parallel, where)
