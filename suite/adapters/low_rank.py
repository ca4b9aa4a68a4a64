"""Adapters of linear layers that consist of two thin matrices A and B: layer selection and merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from suite.adapters.base import Adapter, AdapterSettings, LazyWeights
from suite.config.errors import SpecError
from suite.config.numbers import Few
from suite.oracle.base import Tensors


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


class LowRankAdapter(Adapter):
    """An adapter that adds delta(A, B) to the weight of each of its layers.

    A and B are fp32 whatever the model's dtype: they are small, and in bf16 their small steps would be rounded away.
    """

    settings: Any

    def __init__(self, settings: AdapterSettings, model: nn.Module, seed: int) -> None:
        super().__init__(settings, model, seed)
        self._ordinary = dict(linear_layers(model, self.settings.targets))
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


def linear_layers(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Linear layers whose names match one of the patterns, without the output layer.

    Raises:
        SpecError: there is none.
    """
    head = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    matching = {name: layer for name, layer in layers.items() if any(fnmatch(name, pattern) for pattern in patterns)}
    if not matching:
        some = ", ".join(list(layers)[:3]) or "none"
        raise SpecError(f"adapter.targets: {list(patterns)} matches no linear layer (there are {some}, ...)")
    return matching
