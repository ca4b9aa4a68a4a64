"""Attention of one new token per row over a cache, where several query heads share a key head.

The heads of a group ask as if they were queries at several places, so the cached keys and values are read as they lie.
Repeating them for each head instead copies the whole cache in every layer of every step.
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
    **rest: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, as `AttentionInterface` has it; anything but one masked query goes to its `sdpa`.

    Args:
        query: (rows, heads, queries, head size).
        key, value: (rows, key heads, columns, head size).
        attention_mask: (rows, 1, queries, columns), added to the scores.

    Returns:
        (rows, queries, heads, head size).
    """
    rows, heads, queries, _ = query.shape
    shared = key.shape[1]
    if queries != 1 or attention_mask is None or rest.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    asked = query.view(rows, shared, heads // shared, -1)
    found = torch.nn.functional.scaled_dot_product_attention(
        asked, key, value, attn_mask=attention_mask.expand(-1, -1, heads // shared, -1), scale=scaling
    )
    return found.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, grouped_attention)


@contextmanager
def grouped(model: PreTrainedModel) -> Iterator[None]:
    """The model attends so for as long as this lasts, if it uses torch's attention."""
    usual = model.config._attn_implementation
    if usual != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
