"""A low-rank adapter that bounds the change of each weight, so that gradient ascent cannot diverge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from suite.adapters.low_rank import LowRankAdapter, LowRankSettings


class Bounded(LowRankAdapter["Bounded.Settings"]):
    """Bounded changes of the MLP layers: W + s sin(w B A), no entry changed by more than s (arXiv 2509.24166).

    Stable Forgetting bounds the adapters of the feed-forward layers, where gradient ascent diverges; the sine of a
    low-rank product is from arXiv 2403.19243. We could not read how bound and frequency are set there, so this form and
    its defaults are our reconstruction. Near the start, where sin x = x, s w plays the role of LoRA's alpha / rank, and
    both are 2 by default. A starts as in LoRA, B at zero, so the model is unchanged at first, bit for bit.
    """

    source = "arXiv 2509.24166"

    class Settings(LowRankSettings):
        """bound: s, in units of the weight; 0.02 is the spread of a 7B model's weights. frequency: w."""

        name: Literal["bounded"] = "bounded"
        targets: tuple[str, ...] = Field(("*mlp*",), min_length=1)
        bound: float = Field(0.02, gt=0)
        frequency: float = Field(100.0, gt=0)

    def _insert(self, seed: int) -> Mapping[str, tuple[nn.Parameter, nn.Parameter]]:
        draw = torch.Generator().manual_seed(seed)
        pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, linear in self._ordinary.items():
            a = torch.empty(self.settings.rank, linear.in_features)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=draw)
            b = torch.zeros(linear.out_features, self.settings.rank)
            device = linear.weight.device
            pairs[name] = nn.Parameter(a.to(device)), nn.Parameter(b.to(device))
            self.model.set_submodule(name, _Changed(linear, *pairs[name], self))
        return pairs

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        return bounded_change(a, b, self.settings.bound, self.settings.frequency)


def bounded_change(a: Tensor, b: Tensor, bound: float, frequency: float) -> Tensor:
    """s sin(w B A): (outputs, inputs) from A (rank, inputs) and B (outputs, rank); no entry beyond +-s."""
    return bound * torch.sin(frequency * (b @ a))


class _Changed(nn.Module):
    """A linear layer with a change added to its weight, the sum rounded to the weight's dtype as in an export."""

    def __init__(self, linear: nn.Linear, a: nn.Parameter, b: nn.Parameter, adapter: Bounded) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, a, b
        self._delta = adapter.delta

    @property
    def weight(self) -> Tensor:
        return (self.linear.weight.float() + self._delta(self.a, self.b)).to(self.linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.linear.bias)
