"""Grouped-query attention of one new token per row over a cache, without repeated keys and values.

The query heads of a group are treated as several queries of one head, so the cached keys and values are read in place.
Repeating them for each head would copy the whole cache in every layer of every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "regrade_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention for `AttentionInterface`. Anything but one masked query is passed on to its `sdpa`.

    Args:
        query: (rows, heads, queries, head size).
        key, value: (rows, key heads, columns, head size).
        attention_mask: (rows, 1, queries, columns), added to the scores.

    Returns:
        (rows, queries, heads, head size).
    """
    rows, heads, queries, _ = query.shape
    shared = key.shape[1]
    if queries != 1 or attention_mask is None or more.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    grouped_query = query.view(rows, shared, heads // shared, -1)
    found = torch.nn.functional.scaled_dot_product_attention(
        grouped_query, key, value, attn_mask=attention_mask.expand(-1, -1, heads // shared, -1), scale=scaling
    )
    return found.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, grouped_attention)


@contextmanager
def grouped(model: PreTrainedModel) -> Iterator[None]:
    """Make the model use this attention inside the context, if it uses torch's scaled dot-product attention."""
    previous = model.config._attn_implementation
    if previous != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
