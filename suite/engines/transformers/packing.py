"""Packs texts that share prefixes into rows, so that a shared prefix is computed once.

Sorted texts are a walk through their prefix tree. A row holds a stretch of that walk: every token of the tree once,
parents before children, branch after branch. A position attends to itself and to its ancestors, which are earlier in
the row, and its position id is its depth. So a model computes for a path what it computes for that text alone. There is
no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

Ids = tuple[int, ...]

ROW_COST = 24
"""Fixed cost of a row, in positions: the weights are read once per row whatever its length."""


@dataclass(frozen=True, slots=True)
class Row:
    """A stretch of the prefix tree.

    Attributes:
        ids: token of each position.
        depths: number of ancestors of each position, which is its place in each of its texts.
        ends: position after the last descendant of each position. Branch follows branch, so exactly the positions from
            a position up to its end attend to it.
        paths: index of each text in the row, with the positions of its tokens.
    """

    ids: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    paths: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def branches(self) -> bool:
        """Whether the row holds more than a single path, so that it needs a mask."""
        return self.depths[-1] != len(self.ids) - 1

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Inputs of a transformers model; without a mask if the row is a single path."""
        inputs = {
            "input_ids": torch.tensor([self.ids], device=device),
            "position_ids": torch.tensor([self.depths], device=device),
        }
        return (
            inputs | {"attention_mask": additive(self.attends(device), dtype)[None, None]} if self.branches else inputs
        )

    def attends(self, device: torch.device | str = "cpu") -> Tensor:
        """(positions, positions) bool: whether the row's position attends to the column's."""
        position = torch.arange(len(self.ids), device=device)
        ends = torch.tensor(self.ends, device=device)
        return (position <= position.unsqueeze(1)) & (position.unsqueeze(1) < ends)


def pack(texts: Sequence[Ids], limit: int) -> list[Row]:
    """Rows of at most `limit` positions (or of one longer text) that hold every text at the lowest cost.

    Args:
        texts: token ids, each of at least one token.
    """
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    walk = [texts[i] for i in order]
    shared = [common(before, text) for before, text in zip(((), *walk), walk, strict=False)]
    return [
        _row(order[first:last], walk[first:last], [0, *shared[first + 1 : last]])
        for first, last in _stretches([len(text) for text in walk], shared, limit)
    ]


def additive(attends: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of transformers: 0 where a position attends, else the lowest number of the dtype."""
    return torch.zeros(attends.shape, dtype=dtype, device=attends.device).masked_fill_(~attends, torch.finfo(dtype).min)


def common(one: Ids, other: Ids) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _stretches(lengths: Sequence[int], shared: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Where to cut the walk so that rows have the lowest total cost, by dynamic programming.

    A row from text i to text j has all tokens of i, and of each later text the tokens that it does not share with the
    one before it.
    """
    added = list(accumulate((n - s for n, s in zip(lengths, shared, strict=True)), initial=0))
    costs, cuts = [0], [0]  # for the first 0, 1, ... texts: the lowest cost, and where their last row begins
    for last in range(1, len(lengths) + 1):
        options: list[tuple[int, int]] = []
        for first in range(last - 1, -1, -1):
            size = lengths[first] + added[last] - added[first + 1]
            if size > limit and options:
                break
            options.append((costs[first] + size + ROW_COST, first))
        cost, cut = min(options)
        costs.append(cost)
        cuts.append(cut)
    stretches = []
    last = len(lengths)
    while last:
        stretches.append((cuts[last], last))
        last = cuts[last]
    return stretches[::-1]


def _row(order: Sequence[int], texts: Sequence[Ids], shared: Sequence[int]) -> Row:
    ids: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    paths: list[tuple[int, tuple[int, ...]]] = []
    path: list[int] = []
    for index, text, trunk in zip(order, texts, shared, strict=True):
        for position in path[trunk:]:
            ends[position] = len(ids)
        path = [*path[:trunk], *range(len(ids), len(ids) + len(text) - trunk)]
        ids += text[trunk:]
        depths += range(trunk, len(text))
        ends += [0] * (len(text) - trunk)  # known when the walk has left the branch
        paths.append((index, tuple(path)))
    for position in path:
        ends[position] = len(ids)
    return Row(tuple(ids), tuple(depths), tuple(ends), tuple(paths))
