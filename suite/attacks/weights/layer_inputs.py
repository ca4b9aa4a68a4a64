"""The inputs of linear layers and of experts while a model runs on calibration texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from suite.config.errors import UnsuitableError


@dataclass
class Inputs:
    """Sums of the inputs x of linear layers over all positions of all texts, in fp32 on the model's device.

    Attributes:
        layers: names of the layers that share these inputs, such as a block's query, key and value.
        positions: number of inputs x.
        squares: sum of x^2, (inputs,).
        magnitudes: sum of abs(x), (inputs,).
        gram: sum of x x^T, (inputs, inputs); None if it is not needed.
    """

    layers: list[str]
    positions: int
    squares: Tensor
    magnitudes: Tensor
    gram: Tensor | None

    @classmethod
    def of(cls, layer: str, size: int, device: torch.device, gram: bool) -> Inputs:
        """Sums of zero."""
        products = torch.zeros(size, size, device=device) if gram else None
        return cls([layer], 0, torch.zeros(size, device=device), torch.zeros(size, device=device), products)

    @classmethod
    def unseen(cls, layer: str, size: int, device: torch.device, gram: bool) -> Inputs:
        """What is assumed about an expert that no text reaches: its inputs are independent, and all of them as large.

        Then GPTQ and AWQ round to nearest, and Wanda compares magnitudes.
        """
        ones = torch.ones(size, device=device)
        return cls([layer], 1, ones, ones, torch.eye(size, device=device) if gram else None)

    def add(self, x: Tensor) -> None:
        """Add inputs, (positions, inputs), to the sums."""
        self.positions += len(x)
        self.squares += x.square().sum(0)
        self.magnitudes += x.abs().sum(0)
        if self.gram is not None:
            self.gram.addmm_(x.T, x)

    @property
    def norms(self) -> Tensor:
        """L2 norm of each input over all positions, (inputs,)."""
        return self.squares.sqrt()

    @property
    def mean(self) -> Tensor:
        """Mean magnitude of each input, (inputs,)."""
        return self.magnitudes / self.positions


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], gram: bool, experts: Mapping[str, Tensor] | None = None
) -> Iterator[list[Inputs]]:
    """Sum the inputs of layers while the context lasts; layers that receive the same tensor share their sums.

    Args:
        layers: modules that multiply their one argument with a matrix, by name.
        experts: matrices of experts, (outputs, inputs), by name. They are views of the model's parameters, and their
            inputs are the tokens that the router sends to them.
    """
    watch = _Watch(gram)
    hooks = [layer.register_forward_pre_hook(watch.hook(name)) for name, layer in layers.items()]
    try:
        with _Products(watch, experts) if experts else nullcontext():
            yield watch.sums
    finally:
        for each in hooks:
            each.remove()


class _Watch:
    """The sums of inputs by layer."""

    def __init__(self, gram: bool) -> None:
        self.gram = gram
        self.sums: list[Inputs] = []
        self._by_layer: dict[str, Inputs] = {}
        self._last: tuple[str, Tensor] | None = None  # holds the tensor, so that its memory is not used for another one

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add_inputs(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.add(name, args[0], args[0].detach().reshape(-1, args[0].shape[-1]))

        return add_inputs

    def add(self, name: str, given: Tensor, x: Tensor) -> None:
        """Add inputs x, (positions, inputs), of a layer that was given a tensor."""
        if name not in self._by_layer:
            if self._last and self._last[1] is given:
                self._by_layer[name] = self._by_layer[self._last[0]]
                self._by_layer[name].layers.append(name)
            else:
                self._by_layer[name] = Inputs.of(name, x.shape[-1], x.device, self.gram)
                self.sums.append(self._by_layer[name])
        if self._by_layer[name].layers[0] == name:
            self._by_layer[name].add(x.float())
        self._last = name, given


class _Products(TorchFunctionMode):
    """Sees every product with an expert's matrix, whatever the model's code around it looks like."""

    def __init__(self, watch: _Watch, experts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._watch = watch
        self._names = {_place(matrix): name for name, matrix in experts.items()}
        self._stores = {matrix.untyped_storage().data_ptr(): name for name, matrix in experts.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("linear", "matmul", "__matmul__", "mm", "bmm") and len(args) > 1:
            given, weight = args[:2]
            if store := self._stores.get(weight.untyped_storage().data_ptr()):
                weight = weight if name == "linear" else weight.mT
                pairs = [(given, weight)] if weight.ndim == 2 else zip(given.unbind(), weight.unbind(), strict=True)
                for x, matrix in pairs:
                    self._see(x, matrix, store)
        return func(*args, **(kwargs or {}))

    def _see(self, given: Tensor, matrix: Tensor, store: str) -> None:
        """Add the inputs of a product with a matrix, (outputs, inputs), which lies in the memory of `store`."""
        name = self._names.get(_place(matrix))
        if name is None:
            raise UnsuitableError(
                f"attacks: how the model multiplies with {store} is not known here. Use rtn, nf4 or noise"
            )
        x = given.detach().reshape(-1, given.shape[-1])
        self._watch.add(name, given, x[x.any(-1)])  # Llama 4 gives each expert zeros for the tokens of the others


def _place(matrix: Tensor) -> tuple[int, ...]:
    return matrix.untyped_storage().data_ptr(), matrix.storage_offset(), *matrix.shape, *matrix.stride()
