"""What is known of vLLM before an engine is built; imports neither vLLM nor Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from suite.cluster.placement import PoolResources
from suite.engines.base import Engine, EngineKind, EngineSettings
from suite.engines.vllm import build
from suite.engines.vllm.settings import VllmSettings
from suite.models.checkpoints import Heads
from suite.models.encoding import Encoder

if TYPE_CHECKING:
    from suite.engines.agreement import ComparableEngine


class Vllm(EngineKind):
    """vLLM, in processes that all trials share; likelihoods are mostly computed by transformers (docs/engines.md)."""

    Settings = VllmSettings
    cross_checked = True

    @classmethod
    def build(cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Engine:
        from suite.engines.vllm.engine import VllmEngine

        return VllmEngine(settings, encoder, dtype=dtype, device=device)

    @classmethod
    def build_alone(
        cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device
    ) -> ComparableEngine:
        from suite.engines.vllm.engine import VllmEngine

        return VllmEngine(settings, encoder, dtype=dtype, device=device, alone=True)

    @classmethod
    def check_usable(cls) -> None:
        build.usable()

    @classmethod
    def check_heads(cls, settings: EngineSettings, heads: Heads, where: str) -> None:
        build.check_heads(heads, settings.own(VllmSettings).tensor_parallel, where)

    @classmethod
    def pool_resources(cls, settings: EngineSettings) -> PoolResources:
        return build.pool_resources(settings.own(VllmSettings))

    @classmethod
    def open_pool(cls, pool: PoolResources, on_wait: Callable[[], None]) -> None:
        from suite.engines.vllm.pool import open_pool

        open_pool(pool, on_wait)

    @classmethod
    def finding(cls) -> tuple[str, str]:
        found = build.build()
        if found is None:
            return "–", f"not installed; the transformers engine answers. {build.HOW}"
        use = f"measure.engine={cls.key()}, on {'GPUs' if found.gpu else 'CPUs'}"
        return f"{found.version} ({found.package})", f"cannot be used: {found.unfit}" if found.unfit else use
