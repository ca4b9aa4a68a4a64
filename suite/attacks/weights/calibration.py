"""The inputs of a model's linear layers on calibration texts, and weight edits that depend on these inputs.

Blocks are edited from the first to the last, and the inputs of a block are the outputs of the edited blocks before it,
not those of the original model. So later edits can compensate for the errors of earlier ones (Frantar et al. 2023,
arXiv 2210.17323, Sec. 4).
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
def watched(layers: Mapping[str, nn.Linear], gram: bool) -> Iterator[list[Inputs]]:
    """Sum the inputs of linear layers while the context lasts; layers that receive the same tensor share their sums."""
    sums: list[Inputs] = []
    by_layer: dict[str, Inputs] = {}
    last: list[tuple[str, Tensor]] = []  # holds the tensor, so that its memory is not reused for another one

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add_inputs(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            if name not in by_layer:
                if last and last[0][1] is args[0]:
                    by_layer[name] = by_layer[last[0][0]]
                    by_layer[name].layers.append(name)
                else:
                    by_layer[name] = Inputs.of(name, x.shape[-1], x.device, gram)
                    sums.append(by_layer[name])
            if by_layer[name].layers[0] == name:
                by_layer[name].add(x.reshape(-1, x.shape[-1]).float())
            last[:] = [(name, args[0])]

        return add_inputs

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield sums
    finally:
        for each in hooks:
            each.remove()


@dataclass
class _TextStates:
    """The hidden states of one text between two blocks, and each block's other arguments.

    The other arguments do not depend on weights, so they are recorded once.
    """

    states: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def through(self, block: nn.Module, index: int) -> Tensor:
        """The states after a block; the text itself is not advanced."""
        args, kwargs = self.arguments[index]
        output = block(self.states, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def edit_blocks(
    model: nn.Module, texts: Sequence[Sequence[int]], edit: Callable[[Tensor, Inputs], Tensor], *, gram: bool = True
) -> list[str]:
    """Edit the weights of all linear layers in the model's blocks, in place, block by block.

    Args:
        model: fp32, in eval mode.
        texts: ids; each text is a batch of its own, so nothing is padded.
        edit: returns the edited weights, (outputs, inputs). Weights of layers with the same inputs come concatenated
            along the outputs.
        gram: whether the edit reads `Inputs.gram`.

    Returns:
        Names of the edited weights.

    Raises:
        SpecError: the model's blocks or their linear layers are not found, or no text reaches one of these layers.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise SpecError(f"attacks: {type(model).__name__} has no list of blocks to calibrate. Use rtn, nf4 or noise")
    names = {module: name for name, module in model.named_modules()}
    started = [_before_blocks(model, blocks, text) for text in texts]
    edited: list[str] = []
    for index, block in enumerate(blocks):
        layers = {
            name: module
            for module in block.modules()
            if isinstance(module, nn.Linear) and is_linear(name := f"{names[module]}.weight", module.weight)
        }
        with watched(layers, gram) as sums:
            for text in started:
                text.through(block, index)
        reached = {name for inputs in sums for name in inputs.layers}
        if unreached := [name for name in layers if name not in reached]:
            raise SpecError(f"attacks: no calibration text reaches {unreached[0]}. Use more samples")
        for inputs in sums:
            weights = [layers[name].weight for name in inputs.layers]
            changed = edit(torch.cat(weights), inputs).split([len(weight) for weight in weights])
            for weight, new in zip(weights, changed, strict=True):
                weight.copy_(new)
        edited += layers
        for text in started:
            text.states = text.through(block, index)
    if not edited:
        raise SpecError(f"attacks: {type(model).__name__} has no linear layers in its blocks. Use rtn, nf4 or noise")
    return edited


def _before_blocks(model: nn.Module, blocks: nn.ModuleList, ids: Sequence[int]) -> _TextStates:
    """A text before the first block, with the other arguments that the model passes to each block."""
    texts: list[_TextStates] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not texts:
            texts.append(_TextStates(args[0]))
        texts[0].arguments.append((args[1:], kwargs))

    hooks = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    try:
        # Without the output layer, whose result is not needed.
        model.base_model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return texts[0]
