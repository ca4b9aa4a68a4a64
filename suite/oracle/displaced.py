"""A model whose modules run with displaced weights, one module at a time.

The weights stay where they are. Just before a module runs, its displaced tensors are made; when it has run, they are
gone. So a loss value at another place costs one reading of the weights and of the direction and no second copy of
either, and there is nothing to restore. Displaced tensors are summed in fp32 and rounded to the weights' dtype once.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from suite.oracle.base import Displacement


class Displacing:
    """While it is entered, `model` runs at `displacement` (None: where the weights stand).

    For values only: a backward pass would find the weights back in their place.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.displacement: Displacement | None = None
        self._parameters = parameters
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._weights: dict[int, Tensor] = {}  # of the modules that run
        self._scratch = torch.empty(0)
        self._modules = [m for m in model.modules() if any(id(p) in self._index for p in m.parameters(recurse=False))]
        self._hooks: list[Any] = []

    def __enter__(self) -> Displacing:
        for module in self._modules:
            if reads_rows(module):
                self._hooks.append(module.register_forward_hook(self._rows))
            else:
                self._hooks.append(module.register_forward_pre_hook(self._before))
                # always: a pass that is broken off must not leave a weight of its place to the next one
                self._hooks.append(module.register_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for index, weight in self._weights.items():  # of a pass that broke off
            self._parameters[index].data = weight
        self._weights.clear()
        self.displacement = None

    def _before(self, module: nn.Module, args: Any) -> None:
        if self.displacement is None:
            return
        for parameter in module._parameters.values():
            index = self._index.get(id(parameter))
            if index is not None and index not in self._weights:
                self._weights[index] = parameter.data
                parameter.data = self._displaced(parameter.data, index)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._weights:
            for parameter in module._parameters.values():
                if (index := self._index.get(id(parameter))) in self._weights:
                    parameter.data = self._weights.pop(index)

    def _rows(self, module: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """An embedding reads few of its rows: only these are displaced."""
        if self.displacement is None:
            return None
        index, ids = self._index[id(module.weight)], args[0]
        rows = output.float()
        for scale, direction in self.displacement.terms:
            rows = torch.add(rows, direction[index][ids], alpha=scale)
        return rows.to(output.dtype)

    def _displaced(self, weight: Tensor, index: int) -> Tensor:
        alone = weight.dtype is torch.float32 and len(self._weights) == 1 and weight.is_contiguous()
        room = self._room(weight) if alone else None
        return displaced(weight, self.displacement, index, room).to(weight.dtype)  # type: ignore[arg-type]

    def _room(self, like: Tensor) -> Tensor:
        """Memory that stays from module to module: fresh memory costs more in page faults than the sum does."""
        if self._scratch.numel() < like.numel() or self._scratch.device != like.device:
            self._scratch = torch.empty(like.numel(), device=like.device)
        return self._scratch[: like.numel()].view(like.shape)


def reads_rows(module: nn.Module) -> bool:
    """Whether a module answers with rows of its weight, as they are."""
    return type(module) is nn.Embedding and module.max_norm is None


def displaced(weight: Tensor, displacement: Displacement, index: int, room: Tensor | None = None) -> Tensor:
    """One displaced tensor, in fp32; written into `room`, an fp32 tensor, where there is some."""
    (scale, direction), *rest = displacement.terms
    place = torch.add(weight.float(), direction[index], alpha=scale, out=room)
    for scale, direction in rest:
        place.add_(direction[index], alpha=scale)
    return place
