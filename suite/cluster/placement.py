"""What fits where: trials, and the engines that they share, on the CPUs and GPUs that there are."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec

HALF = 0.5
"""Of a GPU that a trial and an engine have in turn."""


@dataclass(frozen=True)
class Resources:
    """What a machine or a cluster has. `growing`: one that starts machines when somebody waits for them."""

    cpus: float
    gpus: float
    growing: bool = False

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True)
class PoolResources:
    """How many engines, and what each takes of its machine.

    Attributes:
        gpus: of one engine; half of one where it shares it with a trial, 0 on a CPU.
        threads: of each of its processes. cpus: of all of them.
    """

    engines: int = 1
    gpus: float = 0.0
    threads: int = 1
    cpus: int = 1

    @property
    def shared(self) -> bool:
        """Whether one GPU is a trial's and an engine's in turn."""
        return self.gpus == HALF


@dataclass(frozen=True)
class Placement:
    """How trials and engines are laid out.

    Attributes:
        trials: at a time.
        trial_gpus: of one trial: 0 on a CPU, half a GPU where an engine shares it.
        pool: the engines.
    """

    trials: int
    trial_gpus: float
    pool: PoolResources


def plan_placement(room: Resources, pool: PoolResources, runtime: RuntimeSpec) -> Placement:
    """Where trials and engines go. Trials take GPUs where there are any, unless they are told to stay on CPUs.

    Args:
        pool: what the engines say that they need.

    Raises:
        SpecError: no trial fits, or none beside the engines, so that something would wait for ever.
    """
    on_gpu = runtime.device == "cuda" or (runtime.device == "auto" and room.gpus > 0)
    trial_gpus = 1.0 if on_gpu else 0.0
    shape = pool
    if shape.engines == shape.gpus == room.gpus == trial_gpus == 1:
        trial_gpus, shape = HALF, replace(shape, gpus=HALF)
    found = Placement(0, trial_gpus, shape)
    if room.growing and (on_gpu or shape.gpus):
        return replace(found, trials=1)  # nobody knows how many machines will come
    fitting = [(room.cpus - shape.engines * shape.cpus) // runtime.threads]
    if trial_gpus:
        fitting.append((room.gpus - shape.engines * shape.gpus) // trial_gpus)
    if min(fitting) >= 1 and room.gpus >= shape.engines * shape.gpus:
        return replace(found, trials=int(min(fitting)))
    trial = f"a trial needs {_needs(trial_gpus, runtime.threads)}"
    if not shape.engines:
        raise SpecError(f"runtime: no trial fits: {trial}, and there are {room}")
    engines = "an engine" if shape.engines == 1 else f"{shape.engines} engines"
    raise SpecError(
        f"measure.vllm: trials and engines do not fit together: {trial}, {engines} "
        f"{_needs(shape.engines * shape.gpus, shape.engines * shape.cpus)}, and there are {room}. Take fewer "
        "measure.vllm.engines, runtime.device=cpu, or measure.engine=transformers"
    )


def local_resources() -> Resources:
    """What this machine has."""
    import torch

    return Resources(os.cpu_count() or 1, torch.cuda.device_count())


def _needs(gpus: float, cpus: float) -> str:
    return " and ".join(
        f"{count:g} {name}{'s'[: count > 1]}" for count, name in ((gpus, "GPU"), (cpus, "CPU")) if count
    )
