"""A key-value cache with one row per text that is being continued, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from suite.engines.transformers.packing import additive


class RowCache(Cache):
    """A cache in which each row holds one text, from column 0 on. The rows in use are the first ones.

    Args:
        like: a cache of the same model, of any length.
        rows, columns: number of texts at a time, and maximum tokens of each.
    """

    def __init__(self, like: DynamicCache, rows: int, columns: int) -> None:
        super().__init__(layers=[])
        self.rows, self.columns = rows, columns
        self._states = [
            (_allocate(keys, rows, columns), _allocate(values, rows, columns)) for keys, values in states_of(like)
        ]
        self._row = self._column = torch.empty(0, dtype=torch.long)
        self._width = 0

    def read(self, row: int, texts: DynamicCache, path: Tensor) -> None:
        """Copy a text into a row, from the positions of its tokens in a packed row."""
        for targets, sources in zip(self._states, states_of(texts), strict=True):
            for target, source in zip(targets, sources, strict=True):
                target[row, :, : len(path)] = source[0, :, path]

    def move(self, row: int, to: int, length: int) -> None:
        """Copy the first columns of a row to another row."""
        for states in self._states:
            for tensor in states:
                tensor[to, :, :length] = tensor[row, :, :length]

    def place(self, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Set the column of each row's next token, and return the mask with which it attends to its own text.

        Returns:
            (rows, 1, 1, columns), additive.
        """
        device = self._states[0][0].device
        self._column = torch.tensor(lengths, device=device)
        self._row = torch.arange(len(lengths), device=device)
        self._width = max(lengths) + 1
        attends = torch.arange(self._width, device=device) <= self._column.unsqueeze(1)
        return additive(attends, dtype)[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the next token's keys and values, (rows, heads, 1, head size), and return all that it may attend to.

        Called by the model.
        """
        keys, values = self._states[layer_idx]
        keys[self._row, :, self._column] = key_states[:, :, 0]
        values[self._row, :, self._column] = value_states[:, :, 0]
        used = len(self._row)
        return keys[:used, :, : self._width], values[:used, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._width, 0


def states_of(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """The keys and the values of each layer.

    Raises:
        TypeError: a layer holds none: it is not attention.
    """
    states = []
    for layer in cache.layers:
        if not isinstance(layer, CacheLayerMixin) or layer.keys is None or layer.values is None:
            raise TypeError(f"{layer} holds no keys and values")
        states.append((layer.keys, layer.values))
    return states


def _allocate(example: Tensor, rows: int, columns: int) -> Tensor:
    _, heads, _, size = example.shape
    return example.new_zeros(rows, heads, columns, size)  # zeros, because masked values are still multiplied
