"""Engines: they run probes on checkpoints and return samples."""

from __future__ import annotations

from suite.engines.base import Engine, Job, JobResult, ask
from suite.engines.transformers.engine import TransformersEngine

__all__ = [
    "Engine",
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
