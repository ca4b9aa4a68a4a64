"""What a model's linear layers are given while it reads calibration texts, and edits of their weights that look at it.

An edit goes from the first block to the last, and the inputs of a block are what the edited blocks before it make
of the texts, not what the whole model would: errors made early are seen, and may be made up for, later on (Frantar et
al. 2023, arXiv 2210.17323, Sec. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from suite.config.errors import SpecError
from suite.models.layers import blocks_of, is_linear


@dataclass
class Inputs:
    """What linear layers were given, summed over all positions of all texts, in fp32 on the model's device.

    Attributes:
        layers: names of the layers that were given just this, such as a block's query, key and value.
        positions: how many inputs x there were.
        squares: sum of x^2, (inputs,).
        magnitudes: sum of abs(x), (inputs,).
        gram: sum of x x^T, (inputs, inputs); None where it was not asked for.
    """

    layers: list[str]
    positions: int
    squares: Tensor
    magnitudes: Tensor
    gram: Tensor | None

    @classmethod
    def of(cls, layer: str, size: int, device: torch.device, gram: bool) -> Inputs:
        """None yet."""
        products = torch.zeros(size, size, device=device) if gram else None
        return cls([layer], 0, torch.zeros(size, device=device), torch.zeros(size, device=device), products)

    def add(self, given: Tensor) -> None:
        """Count in (positions, inputs)."""
        self.positions += len(given)
        self.squares += given.square().sum(0)
        self.magnitudes += given.abs().sum(0)
        if self.gram is not None:
            self.gram.addmm_(given.T, given)

    @property
    def norms(self) -> Tensor:
        """L2 norm of each input over all positions, (inputs,)."""
        return self.squares.sqrt()

    @property
    def mean(self) -> Tensor:
        """Mean magnitude of each input, (inputs,)."""
        return self.magnitudes / self.positions


@contextmanager
def watched(layers: Mapping[str, nn.Linear], gram: bool) -> Iterator[list[Inputs]]:
    """Adds up what linear layers are given while the context lasts; layers that are given one tensor share a sum."""
    found: list[Inputs] = []
    by_layer: dict[str, Inputs] = {}
    last: list[tuple[str, Tensor]] = []  # held, so that no other tensor takes its place in memory

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def given(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            if name not in by_layer:
                if last and last[0][1] is args[0]:
                    by_layer[name] = by_layer[last[0][0]]
                    by_layer[name].layers.append(name)
                else:
                    by_layer[name] = Inputs.of(name, x.shape[-1], x.device, gram)
                    found.append(by_layer[name])
            if by_layer[name].layers[0] == name:
                by_layer[name].add(x.reshape(-1, x.shape[-1]).float())
            last[:] = [(name, args[0])]

        return given

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for each in hooks:
            each.remove()


@dataclass
class _Run:
    """One text on its way through the blocks: what a block is given besides the states does not depend on weights."""

    states: Tensor
    besides: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def through(self, block: nn.Module, index: int) -> Tensor:
        args, kwargs = self.besides[index]
        output = block(self.states, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def edit_blocks(
    model: nn.Module, texts: Sequence[Sequence[int]], edit: Callable[[Tensor, Inputs], Tensor], *, gram: bool = True
) -> list[str]:
    """Edit the weights of all linear layers in the model's blocks, in place, block by block.

    Args:
        model: fp32, in eval mode.
        texts: ids; each is read by itself, so nothing is padded.
        edit: gives weights (outputs, inputs) back changed. Layers that are given the same inputs come as one, their
            outputs one below the other.
        gram: whether the edit reads `Inputs.gram`.

    Returns:
        Names of the weights that were edited.

    Raises:
        SpecError: the model's blocks or their linear layers are not found, or the texts never reach one of these.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise SpecError(f"attacks: {type(model).__name__} has no list of blocks to calibrate. Use rtn, nf4 or noise")
    names = {module: name for name, module in model.named_modules()}
    runs = [_begun(model, blocks, text) for text in texts]
    edited: list[str] = []
    for index, block in enumerate(blocks):
        layers = {
            name: module
            for module in block.modules()
            if isinstance(module, nn.Linear) and is_linear(name := f"{names[module]}.weight", module.weight)
        }
        with watched(layers, gram) as found:
            for run in runs:
                run.through(block, index)
        seen = {name for inputs in found for name in inputs.layers}
        if unseen := [name for name in layers if name not in seen]:
            raise SpecError(f"attacks: no calibration text reaches {unseen[0]}. Use more samples")
        for inputs in found:
            weights = [layers[name].weight for name in inputs.layers]
            changed = edit(torch.cat(weights), inputs).split([len(weight) for weight in weights])
            for weight, new in zip(weights, changed, strict=True):
                weight.copy_(new)
        edited += layers
        for run in runs:
            run.states = run.through(block, index)
    if not edited:
        raise SpecError(f"attacks: {type(model).__name__} has no linear layers in its blocks. Use rtn, nf4 or noise")
    return edited


def _begun(model: nn.Module, blocks: nn.ModuleList, text: Sequence[int]) -> _Run:
    """A text before the first block, with what the model gives each block besides."""
    runs: list[_Run] = []

    def arrived(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not runs:
            runs.append(_Run(args[0]))
        runs[0].besides.append((args[1:], kwargs))

    hooks = [block.register_forward_pre_hook(arrived, with_kwargs=True) for block in blocks]
    try:
        # Without the output layer: nobody reads what it says.
        model.base_model(input_ids=torch.tensor([text], device=next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return runs[0]
