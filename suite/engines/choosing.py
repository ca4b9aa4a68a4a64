"""Builds the engine that the settings name, and says what it needs. Engines are known by what their classes declare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from suite.cluster.placement import Placement, PoolResources, local_resources, plan_placement
from suite.config.runtime import RuntimeSpec
from suite.engines import ENGINES
from suite.engines.agreement import ComparableEngine
from suite.engines.base import Engine, EngineSettings
from suite.models.checkpoints import Heads
from suite.models.encoding import Encoder


def chosen_engine(settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Engine:
    """Build the engine that the settings name, for models of this dtype.

    Args:
        device: the device on which this process computes.

    Raises:
        NotInstalledError: it cannot be used here.
    """
    engine = ENGINES[settings.engine].build(settings, encoder, dtype=dtype, device=device)
    if package := ENGINES.package(settings.engine):  # so that rows and the keys of stages say whose it is
        engine.version = f"{engine.version} ({package})"
    return engine


def engine_alone(settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> ComparableEngine:
    """Build the engine that the settings name so that it leaves nothing to another one, to be compared with one.

    Raises:
        SpecError: it cannot be used here.
    """
    return ENGINES[settings.engine].build_alone(settings, encoder, dtype=dtype, device=device)


def pool_resources(settings: EngineSettings) -> PoolResources:
    """The resources that the engine needs beside the trials.

    Raises:
        NotInstalledError: it is not installed.
    """
    return ENGINES[settings.engine].pool_resources(settings)


def open_pool(settings: EngineSettings, pool: PoolResources, on_wait: Callable[[], None]) -> None:
    """Reserve the resources of the engine's pool on the connected cluster.

    Args:
        on_wait: called once if they are not free.
    """
    ENGINES[settings.engine].open_pool(pool, on_wait)


def check_here(settings: EngineSettings, runtime: RuntimeSpec) -> Placement:
    """Check that this machine has enough resources for a trial and for the engine.

    Raises:
        ClusterError, NotInstalledError: it has not. The message says what to change.
    """
    ENGINES[settings.engine].check_usable()
    here, pool = local_resources(), pool_resources(settings)
    if not pool.engines:  # one trial runs here, however many threads it has
        here = replace(here, cpus=max(here.cpus, runtime.threads))
    return plan_placement(here, pool, runtime)


def check_heads(settings: EngineSettings, heads: Heads, where: str) -> None:
    """Check that the engine can run a model's attention, before it is started in vain.

    Args:
        where: the setting that names the model, for the message.

    Raises:
        UnsuitableError: it cannot.
    """
    ENGINES[settings.engine].check_heads(settings, heads, where)
