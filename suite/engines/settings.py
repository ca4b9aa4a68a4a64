"""The settings of the engine."""

from __future__ import annotations

from typing import Literal

from suite.config.numbers import Count
from suite.config.settings import Settings
from suite.engines.vllm.settings import VllmSettings


class EngineSettings(Settings):
    """Which engine runs the probes, and how. In a spec these settings stand in the section `measure`.

    Attributes:
        engine: `transformers`, which runs in the trial's process, or `vllm`, which generates text in separate processes
            that all trials share (likelihoods are mostly computed by transformers). `transformers-eos-masked` hides
            the end-of-text token from the model, as open-unlearning does where it is also the padding.
        vllm: settings of vLLM's processes.
        batch_tokens: positions per batch of the transformers engine, padding included.
    """

    engine: Literal["transformers", "vllm", "transformers-eos-masked"] = "transformers"
    vllm: VllmSettings = VllmSettings()
    batch_tokens: Count = 4096
