"""Forward passes with displaced weights, displacing one module at a time.

The weights are never written to. Just before a module runs, its displaced tensors are computed; after it has run, they
are dropped. So a loss value at a displacement costs one read of the weights and of the direction, with no second copy
of either, and nothing has to be restored. Displaced tensors are summed in fp32 and rounded once to the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from suite.oracle.base import Displacement


class Displacing:
    """A context manager in which `model` runs at `displacement` (None: at the weights themselves).

    For values only: a backward pass would see the undisplaced weights.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.displacement: Displacement | None = None
        self._parameters = parameters
        self._index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._weights: dict[int, Tensor] = {}  # of the modules that are running
        self._scratch = torch.empty(0)
        self._modules = [m for m in model.modules() if any(id(p) in self._index for p in m.parameters(recurse=False))]
        self._hooks: list[Any] = []

    def __enter__(self) -> Displacing:
        for module in self._modules:
            if reads_rows(module):
                self._hooks.append(module.register_forward_hook(self._rows))
            else:
                self._hooks.append(module.register_forward_pre_hook(self._before))
                # always_call: a pass that fails must not leave a displaced weight to the next one
                self._hooks.append(module.register_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for index, weight in self._weights.items():  # of a pass that failed
            self._parameters[index].data = weight
        self._weights.clear()
        self.displacement = None

    def _before(self, module: nn.Module, args: Any) -> None:
        if self.displacement is None:
            return
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            index = self._index.get(id(parameter))
            if index is not None and index not in self._weights:
                self._weights[index] = parameter.data
                parameter.data = self._displaced(parameter.data, self.displacement, index)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._weights:
            for parameter in module._parameters.values():
                if parameter is not None and (index := self._index.get(id(parameter))) in self._weights:
                    parameter.data = self._weights.pop(index)

    def _rows(self, module: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Displace only the rows that an embedding reads: they are few."""
        if self.displacement is None:
            return None
        index, ids = self._index[id(module.weight)], args[0]
        rows = output.float()
        for scale, direction in self.displacement.terms:
            rows = torch.add(rows, direction[index][ids], alpha=scale)
        return rows.to(output.dtype)

    def _displaced(self, weight: Tensor, displacement: Displacement, index: int) -> Tensor:
        can_reuse = weight.dtype is torch.float32 and len(self._weights) == 1 and weight.is_contiguous()
        out = self._buffer(weight) if can_reuse else None
        return displaced(weight, displacement, index, out).to(weight.dtype)

    def _buffer(self, like: Tensor) -> Tensor:
        """A buffer that all modules share: page faults of fresh memory cost more than the sum does."""
        if self._scratch.numel() < like.numel() or self._scratch.device != like.device:
            self._scratch = torch.empty(like.numel(), device=like.device)
        return self._scratch[: like.numel()].view(like.shape)


def reads_rows(module: nn.Module) -> bool:
    """Whether a module returns rows of its weight unchanged."""
    return type(module) is nn.Embedding and module.max_norm is None


def displaced(weight: Tensor, displacement: Displacement, index: int, out: Tensor | None = None) -> Tensor:
    """One displaced tensor, in fp32; written into `room`, an fp32 tensor, if it is given."""
    (scale, direction), *rest = displacement.terms
    total = torch.add(weight.float(), direction[index], alpha=scale, out=out)
    for scale, direction in rest:
        total.add_(direction[index], alpha=scale)
    return total
