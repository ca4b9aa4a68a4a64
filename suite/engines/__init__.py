"""From checkpoints and probes to samples."""

from __future__ import annotations

from suite.engines.base import Engine, Evaluation, Job, ask
from suite.engines.transformers_engine import TransformersEngine

__all__ = ["Engine", "Evaluation", "Job", "TransformersEngine", "ask"]
