"""Keys and values of texts that are being continued, a row each, in memory that is taken once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from suite.engines.transformers.packing import additive


class RowCache(Cache):
    """A cache whose row b holds a text of its own in columns 0 to its length; rows 0, 1, ... are in use.

    Args:
        like: a cache of the same model, of any length.
        rows, columns: texts at a time, tokens of each.
    """

    def __init__(self, like: DynamicCache, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        self.rows, self.columns = rows, columns
        self._held = [(_room(layer.keys, rows, columns), _room(layer.values, rows, columns)) for layer in like.layers]
        self._row = self._column = torch.empty(0, dtype=torch.long)
        self._width = 0

    def read(self, row: int, texts: DynamicCache, path: Tensor) -> None:
        """Take a text into a row: what a packed row has at the positions of the text's tokens."""
        for held, layer in zip(self._held, texts.layers, strict=True):
            for mine, theirs in zip(held, (layer.keys, layer.values), strict=True):
                mine[row, :, : len(path)] = theirs[0, :, path]

    def move(self, row: int, to: int, length: int) -> None:
        """Copy a row's first columns."""
        for held in self._held:
            for mine in held:
                mine[to, :, :length] = mine[row, :, :length]

    def place(self, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Say where the next token of each row goes: after so many. The mask with which it attends to its own text.

        Returns:
            (rows, 1, 1, columns), additive.
        """
        device = self._held[0][0].device
        self._column = torch.tensor(lengths, device=device)
        self._row = torch.arange(len(lengths), device=device)
        self._width = max(lengths) + 1
        attends = torch.arange(self._width, device=device) <= self._column.unsqueeze(1)
        return additive(attends, dtype)[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the next token's keys and values, (rows, heads, 1, head size), in their places; all of them, to attend.

        Called by the model.
        """
        keys, values = self._held[layer_idx]
        keys[self._row, :, self._column] = key_states[:, :, 0]
        values[self._row, :, self._column] = value_states[:, :, 0]
        used = len(self._row)
        return keys[:used, :, : self._width], values[:used, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._width, 0


def _room(states: Tensor, rows: int, columns: int) -> Tensor:
    _, heads, _, size = states.shape
    return states.new_zeros(rows, heads, columns, size)  # zeros: what is masked is still multiplied
