"""The engine that a measurement asks for."""

from __future__ import annotations

import torch

from suite.engines.base import Engine
from suite.engines.transformers_engine import TransformersEngine
from suite.spec import MeasureSpec
from suite.text import Encoder


def chosen_engine(measure: MeasureSpec, encoder: Encoder, *, dtype: str, device: torch.device) -> Engine:
    """The engine that `measure` names, for models of this dtype.

    Args:
        device: where this process computes.

    Raises:
        SpecError: it cannot be used here.
    """
    if measure.engine == "vllm":
        from suite.engines.vllm_engine import VllmEngine

        return VllmEngine(measure, encoder, dtype=dtype, device=device)
    return TransformersEngine(encoder, dtype=dtype, device=device, batch_tokens=measure.batch_tokens)
