"""What a model's config says about its weights, without the weights: which matrices it has, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from suite.models.layers import (
    PLAIN,
    Stored,
    blocks_of,
    carries_state,
    config_of,
    counts_columns,
    rope_switch,
    weights_of,
)
from suite.models.layout import skeleton


@dataclass(frozen=True, slots=True)
class Outline:
    """Facts about an architecture.

    Attributes:
        kind: the model's class and type.
        matrices: how the weights of linear layers are stored, by name.
        unknown: tensors that look like such weights, but whose layout is not known here; the largest first.
        share: share of the numbers in both that `matrices` holds.
        share_in_blocks: the same of those in the model's blocks; None where no blocks, or nothing in them, is found.
        as_before: whether `matrices` are what attacks took for linear layers before they knew experts and Conv1D: all
            tensors with two axes and a suitable name, stored as in nn.Linear.
        carries_state: see `suite.models.layers.carries_state`.
        mixes_rows: whether its windows count columns, or its angles are those of a batch's longest text (see
            `counts_columns` and `rope_switch` there).
    """

    kind: str
    matrices: Mapping[str, Stored]
    unknown: tuple[str, ...]
    share: float
    share_in_blocks: float | None
    as_before: bool
    carries_state: bool
    mixes_rows: bool

    @property
    def generation(self) -> dict[str, int]:
        """What belongs into the keys of stages that hold samples: only where texts once shared a batch wrongly."""
        return ({"padding": 2} if self.carries_state else {}) | ({"rows": 2} if self.mixes_rows else {})


def outline_of(architecture: Path) -> Outline:
    """The outline of the model whose config is in a folder.

    Raises:
        ModelError, CheckpointError: there is no such model.
    """
    return _outline(architecture, (architecture / "config.json").read_bytes())


def model_outline(model: torch.nn.Module) -> Outline:
    """The outline of a model; its weights may be on the meta device."""
    matrices: dict[str, Stored] = {}
    unknown: dict[str, int] = {}
    sizes: dict[int, tuple[int, bool]] = {}  # tied tensors count once
    blocks = blocks_of(model)
    inside = {id(parameter) for parameter in blocks.parameters()} if blocks is not None else set()
    for name, tensor, stored in weights_of(model):
        sizes[id(tensor)] = tensor.numel(), stored is not None
        if stored is None:
            unknown[name] = tensor.numel()
        else:
            matrices[name] = stored
    before = {
        name
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if tensor.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe", "norm"))
    }
    return Outline(
        kind=f"{type(model).__name__} ({config_of(model).model_type})",
        matrices=matrices,
        unknown=tuple(sorted(unknown, key=lambda name: (-unknown[name], name))),
        share=_share(sizes.values()) or 0.0,
        share_in_blocks=_share(size for tensor, size in sizes.items() if tensor in inside),
        as_before=before == matrices.keys() and set(matrices.values()) <= {PLAIN},
        carries_state=carries_state(model),
        mixes_rows=counts_columns(model) or rope_switch(model) is not None,
    )


def _share(sizes: Iterable[tuple[int, bool]]) -> float | None:
    """Share of the numbers in tensors that are known; None without tensors."""
    sizes = list(sizes)
    total = sum(size for size, _ in sizes)
    return sum(size for size, known in sizes if known) / total if total else None


@lru_cache(maxsize=16)
def _outline(architecture: Path, config: bytes) -> Outline:
    with torch.device("meta"):
        return model_outline(skeleton(architecture, torch.float32))
