"""Sees the logits inside vLLM: samples with the same random numbers as every other engine, and notes where there is no
number to choose by."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from suite.engines.sampling import Draw, drawn

T = TypeVar("T")


class DrawnTokens(LogitsProcessor):
    """Masks all tokens but the drawn one in rows that sample, so that greedy decoding picks it.

    A row whose largest logit is not finite says nothing: of NaN, vLLM chooses the first token. Such rows are noted by
    the number that their prompt has in `extra_args`; on the device, since a step must not wait for it.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Draw, list[int]]] = {}
        self._numbers: dict[int, int] = {}
        self._places: tuple[Tensor, Tensor] | None = None
        self._nothing = torch.zeros(0, dtype=torch.bool, device=device)

    def watch(self, prompts: int) -> None:
        """Forget what was noted, for so many prompts to come."""
        self._nothing = torch.zeros(prompts, dtype=torch.bool, device=self._nothing.device)

    def nothing(self) -> list[int]:
        """The numbers of the prompts of which a step's logits were not finite."""
        return self._nothing.nonzero().flatten().tolist()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        self._places = None
        for row in batch_update.removed:
            self._rows.pop(row, None)
            self._numbers.pop(row, None)
        for row, params, _, new in batch_update.added:
            self._rows.pop(row, None)
            self._numbers.pop(row, None)
            extra = params.extra_args or {}
            if draw := extra.get("draw"):
                self._rows[row] = Draw(draw[0], bytes.fromhex(draw[1])), new  # vLLM appends to the list as it generates
            if "number" in extra:
                self._numbers[row] = extra["number"]
        for source, target, direction in batch_update.moved:
            _move(self._rows, source, target, direction)
            _move(self._numbers, source, target, direction)

    def apply(self, logits: Tensor) -> Tensor:
        if self._numbers:
            if self._places is None:
                at = torch.tensor([*self._numbers.items()], device=logits.device)
                self._places = at[:, 0], at[:, 1]
            rows, numbers = self._places
            self._nothing[numbers] |= ~logits.amax(-1).isfinite()[rows]
        if not self._rows:
            return logits
        sampled = list(self._rows)
        draws = [draw for draw, _ in self._rows.values()]
        uniforms = [draw.uniform(len(new)) for draw, new in self._rows.values()]
        tokens = drawn(logits[sampled], [draw.temperature for draw in draws], uniforms)
        logits[sampled] = -torch.inf
        logits[sampled, tokens] = 0.0
        return logits


def _move(rows: dict[int, T], source: int, target: int, direction: MoveDirectionality) -> None:
    moved, displaced = rows.pop(source, None), rows.pop(target, None)
    if moved is not None:
        rows[target] = moved
    if displaced is not None and direction is MoveDirectionality.SWAP:
        rows[source] = displaced
