"""From checkpoints and probes to samples."""

from __future__ import annotations

from suite.engines.base import Engine, EngineError, Evaluation, Job, ask
from suite.engines.transformers.engine import TransformersEngine

__all__ = [
    "Engine",
    "EngineError",
    "Evaluation",
    "Job",
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
