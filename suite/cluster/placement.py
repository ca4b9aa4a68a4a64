"""Placement of trials, and of the engines that they share, on the available CPUs and GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from suite.config.errors import ClusterError
from suite.config.runtime import RuntimeSpec

HALF = 0.5
"""The GPUs that a trial and an engine each request when they use one GPU in turn."""


@dataclass(frozen=True)
class Resources:
    """The resources of a machine or a cluster. `growing`: whether it starts more machines when they are requested."""

    cpus: float
    gpus: float
    growing: bool = False

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True)
class PoolResources:
    """The number of engines, and the resources of each.

    Attributes:
        gpus: GPUs per engine; half a GPU if it is shared with a trial, 0 on a CPU.
        threads: threads of each process of an engine. cpus: CPUs of all its processes together.
        setting: the setting with the number of engines, for messages: `measure.vllm.engines`.
    """

    engines: int = 1
    gpus: float = 0.0
    threads: int = 1
    cpus: int = 1
    setting: str = field(default="", compare=False)

    @property
    def shared(self) -> bool:
        """Whether a trial and an engine use one GPU in turn."""
        return self.gpus == HALF


@dataclass(frozen=True)
class Placement:
    """How trials and engines share the resources.

    Attributes:
        trials: number of trials at a time.
        trial_gpus: GPUs per trial: 0 on a CPU, half a GPU if an engine shares it.
        pool: the engines.
    """

    trials: int
    trial_gpus: float
    pool: PoolResources


def plan_placement(available: Resources, pool: PoolResources, runtime: RuntimeSpec) -> Placement:
    """Place trials and engines. Trials use GPUs if there are any, unless `runtime.device` is `cpu`.

    Args:
        pool: the resources that the engines need.

    Raises:
        ClusterError: no trial fits, or none beside the engines, so that one of them would wait for ever.
    """
    on_gpu = runtime.device == "cuda" or (runtime.device == "auto" and available.gpus > 0)
    trial_gpus = 1.0 if on_gpu else 0.0
    if pool.engines == pool.gpus == available.gpus == trial_gpus == 1:
        trial_gpus, pool = HALF, replace(pool, gpus=HALF)
    placement = Placement(0, trial_gpus, pool)
    if available.growing and (on_gpu or pool.gpus):
        return replace(placement, trials=1)  # the number of machines to come is unknown
    limits = [(available.cpus - pool.engines * pool.cpus) // runtime.threads]
    if trial_gpus:
        limits.append((available.gpus - pool.engines * pool.gpus) // trial_gpus)
    if min(limits) >= 1 and available.gpus >= pool.engines * pool.gpus:
        return replace(placement, trials=int(min(limits)))
    trial = f"a trial needs {_needs(trial_gpus, runtime.threads)}"
    if not pool.engines:
        raise ClusterError(f"runtime: no trial fits: {trial}, and there are {available}")
    engines = "an engine" if pool.engines == 1 else f"{pool.engines} engines"
    section, fewer = pool.setting.rpartition(".")[0] or "measure.engine", f"fewer {pool.setting}, " * bool(pool.setting)
    raise ClusterError(
        f"{section}: trials and engines do not fit together: {trial}, {engines} "
        f"{_needs(pool.engines * pool.gpus, pool.engines * pool.cpus)}, and there are {available}. Take "
        f"{fewer}runtime.device=cpu, or measure.engine=transformers"
    )


def local_resources() -> Resources:
    """The resources of this machine."""
    import torch

    return Resources(os.cpu_count() or 1, torch.cuda.device_count())


def _needs(gpus: float, cpus: float) -> str:
    return " and ".join(
        f"{count:g} {name}{'s'[: count > 1]}" for count, name in ((gpus, "GPU"), (cpus, "CPU")) if count
    )
