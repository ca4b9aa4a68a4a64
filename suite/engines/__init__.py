"""Engines: they run probes on checkpoints and return samples. Each is known by what its class declares."""

from __future__ import annotations

from suite.config.registry import Registry
from suite.engines.base import Engine, EngineKind, Job, JobResult, ask
from suite.engines.transformers.engine import TransformersEngine
from suite.engines.transformers.eos_masked import EosMaskedEngine
from suite.engines.vllm.kind import Vllm

__all__ = [
    "ENGINES",
    "Engine",
    "EngineKind",
    "Job",
    "JobResult",
    "TransformersEngine",
    "agreement",
    "ask",
    "base",
    "choosing",
    "scores",
    "settings",
    "transformers",
    "vllm",
]

ENGINES: Registry[type[EngineKind]] = Registry("engine", [TransformersEngine, Vllm, EosMaskedEngine], EngineKind)
