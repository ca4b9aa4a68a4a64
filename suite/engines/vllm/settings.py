"""The settings of the vLLM engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suite.config.numbers import Few
from suite.config.settings import Settings


class VllmSettings(Settings):
    """Settings of vLLM's engines, used if `measure.engine` is `vllm` (see docs/engines.md).

    Attributes:
        engines: number of engines, for all trials together.
        tensor_parallel: GPUs per engine, for models that do not fit on one.
        batch_invariant: make results the same to the last bit whatever else is in the batch, at a cost in speed (GPUs
            from compute capability 9.0 on).
        eager: start on a GPU in seconds, without compiling, but generate more slowly: for a handful of questions.
        gpu_memory: share of each GPU's memory that an engine takes; by default 0.9, or 0.45 of a GPU shared with a
            trial.
        cache_gib: memory for keys and values on a CPU, in GiB.
        threads: CPU threads per engine.
    """

    name: Literal["vllm"] = "vllm"
    engines: Few = 1
    tensor_parallel: Few = 1
    batch_invariant: bool = False
    eager: bool = False
    gpu_memory: float | None = Field(None, gt=0, le=1)
    cache_gib: float = Field(1.0, gt=0, le=100_000)
    threads: Few = 1
