"""Which engine answers, and its settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from suite.config.settings import Settings
from suite.engines.vllm.settings import VllmSettings


class EngineSettings(Settings):
    """Which engine answers. In a spec they stand in the section `measure`.

    Attributes:
        engine: `transformers`, in the trial's process, or `vllm`, which generates text in engines of its own that all
            trials share (likelihoods stay with transformers).
        vllm: those engines.
        batch_tokens: positions per batch of the transformers engine, padding included.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmSettings = VllmSettings()
    batch_tokens: int = Field(4096, ge=1)
