"""Adapters of linear layers that consist of two thin matrices A and B: layer selection and merging."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from suite.adapters.base import Adapter, AdapterSettings, LazyWeights
from suite.config.errors import UnsuitableError
from suite.config.numbers import Few
from suite.oracle.base import Tensors
from tasks.plain_text import shown

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


class LowRankSettings(AdapterSettings):
    """Settings of adapters of linear layers.

    Attributes:
        rank: columns of B and rows of A.
        targets: patterns (as for file names) of module names. The output layer never has an adapter, because it may
            share its weight with the embeddings.
    """

    rank: Few = 8
    targets: tuple[str, ...] = Field(("*",), min_length=1)

    @field_validator("targets", mode="before")
    @classmethod
    def _bare_pattern(cls, targets: Any) -> Any:
        if isinstance(targets, list):  # pydantic accepts a list for a tuple only without a validator
            return tuple(targets)
        return (targets,) if isinstance(targets, str) else targets


L = TypeVar("L", bound=LowRankSettings)


class LowRankAdapter(Adapter[L]):
    """An adapter that adds delta(A, B) to the weight of each of its layers.

    A and B are fp32 whatever the model's dtype: they are small, and in bf16 their small steps would be rounded away.
    """

    _ordinary: Mapping[str, nn.Linear]

    def __init__(self, settings: L, model: CausalLM, seed: int) -> None:
        super().__init__(settings, model, seed)
        self._ordinary = linear_layers(model, self.settings.targets)
        self.before = {f"{name}.weight": layer.weight.detach() for name, layer in self._ordinary.items()}
        model.requires_grad_(False)
        self._factors = {f"{name}.weight": pair for name, pair in self._insert(seed).items()}
        for pair in self._factors.values():
            for factor in pair:
                factor.data = factor.data.float()
                factor.requires_grad_(True)
        model.eval()

    def _insert(self, seed: int) -> Mapping[str, tuple[nn.Parameter, nn.Parameter]]:
        """Insert the adapter into the model. Returns A (rank, inputs) and B (outputs, rank) by name of the layer."""
        raise NotImplementedError

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """Change of the weight, (outputs, inputs), fp32."""
        raise NotImplementedError

    def merged(self, weights: Tensors | None = None) -> Mapping[str, Tensor]:
        own = self.parameters
        values = {id(p): value for p, value in zip(own, own if weights is None else weights, strict=True)}

        @torch.no_grad()
        def merge(name: str) -> Tensor:
            a, b = (values[id(factor)].float() for factor in self._factors[name])
            return self.before[name].float() + self.delta(a, b)

        return LazyWeights(self._factors, merge)


def linear_layers(model: CausalLM, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Linear layers whose names match one of the patterns, without the output layer.

    Raises:
        UnsuitableError: a pattern matches none.
    """
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    check_patterns("adapter.targets", patterns, layers, "linear layer")
    return {name: layer for name, layer in layers.items() if any(fnmatch(name, pattern) for pattern in patterns)}


def check_patterns(key: str, patterns: Sequence[str], names: Collection[str], what: str) -> None:
    """Check that each pattern matches a name.

    Args:
        what: what the names are of, for the message.

    Raises:
        UnsuitableError: one matches nothing, which is likely mistyped.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            by_part = {part: name for name in names for part in name.split(".")}
            similar = get_close_matches(pattern.strip("*").rpartition(".")[2], by_part, n=3, cutoff=0.5)
            there = ", ".join([by_part[part] for part in similar] or list(names)[:3]) or "none"
            raise UnsuitableError(f"{key}: {shown(pattern)} matches no {what} of the model (there are {there}, ...)")
