"""Samples tokens inside vLLM with the same random numbers as every other engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from suite.engines.sampling import Draw, drawn


class DrawnTokens(LogitsProcessor):
    """Masks all tokens but the drawn one in rows that sample, so that greedy decoding picks it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Draw, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, new in batch_update.added:
            self._rows.pop(row, None)
            if draw := (params.extra_args or {}).get("draw"):
                self._rows[row] = Draw(draw[0], bytes.fromhex(draw[1])), new  # vLLM appends to the list as it generates
        for source, target, direction in batch_update.moved:
            moved, displaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved:
                self._rows[target] = moved
            if displaced and direction is MoveDirectionality.SWAP:
                self._rows[source] = displaced

    def apply(self, logits: Tensor) -> Tensor:
        if not self._rows:
            return logits
        rows = list(self._rows)
        draws = [draw for draw, _ in self._rows.values()]
        uniforms = [draw.uniform(len(new)) for draw, new in self._rows.values()]
        tokens = drawn(logits[rows], [draw.temperature for draw in draws], uniforms)
        logits[rows] = -torch.inf
        logits[rows, tokens] = 0.0
        return logits
