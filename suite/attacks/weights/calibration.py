"""Weight edits that depend on the inputs of linear layers, block by block on calibration texts.

Blocks are edited from the first to the last, and the inputs of a block are the outputs of the edited blocks before it,
not those of the original model. So later edits can compensate for the errors of earlier ones (Frantar et al. 2023,
arXiv 2210.17323, Sec. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from suite.attacks.weights.layer_inputs import Inputs, watched
from suite.config.errors import UnsuitableError
from suite.models.layers import Stored, blocks_of, weights_of

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


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
    model: CausalLM, texts: Sequence[Sequence[int]], edit: Callable[[Tensor, Inputs], Tensor], *, gram: bool = True
) -> list[str]:
    """Edit the weights of all linear layers in the model's blocks, in place, block by block.

    Args:
        model: fp32, in eval mode.
        texts: ids; each text is a batch of its own, so nothing is padded.
        edit: returns the edited weights, (outputs, inputs). Weights of layers with the same inputs come concatenated
            along the outputs. An expert's inputs are the tokens that are routed to it; about one that no text reaches,
            see `Inputs.unseen`.
        gram: whether the edit reads `Inputs.gram`.

    Returns:
        Names of the edited weights.

    Raises:
        UnsuitableError: the model's blocks or their linear layers are not found, or no text reaches one of
            these layers.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise UnsuitableError(
            f"attacks: {type(model).__name__} has no list of blocks to calibrate. Use rtn, nf4 or noise"
        )
    if any(hasattr(module, "is_transposed") for module in model.modules()):
        model.set_experts_implementation("eager")  # a product for each expert, which can be seen
    found: dict[int, tuple[str, Stored]] = {}
    for name, parameter, stored in weights_of(model):
        if stored is not None:
            found.setdefault(id(parameter), (name, stored))
    started = [_before_blocks(model, blocks, text) for text in texts]
    edited: list[str] = []
    for index, block in enumerate(blocks):
        weights = _BlockWeights.of(block, found)
        with watched(weights.layers, gram, weights.experts) as sums:
            for text in started:
                text.through(block, index)
        for inputs in weights.completed(sums, gram):
            matrices = [weights.matrices[name] for name in inputs.layers]
            changed = edit(torch.cat(matrices), inputs).split([len(matrix) for matrix in matrices])
            for matrix, new in zip(matrices, changed, strict=True):
                matrix.copy_(new)
        edited += weights.names
        for text in started:
            text.states = text.through(block, index)
    if not edited:
        raise UnsuitableError(
            f"attacks: {type(model).__name__} has no linear layers in its blocks. Use rtn, nf4 or noise"
        )
    return edited


@dataclass
class _BlockWeights:
    """What is edited in a block.

    Attributes:
        names: of the tensors.
        layers: the layers with a matrix of their own, by the tensor's name.
        experts: the other matrices: views of the tensors, by name and number.
        matrices: both, (outputs, inputs).
    """

    names: list[str] = field(default_factory=list)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    experts: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, block: nn.Module, found: dict[int, tuple[str, Stored]]) -> _BlockWeights:
        """What is left in `found`, by identity of the tensor, is taken out: blocks may share tensors."""
        weights = cls()
        for module in block.modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) in found:
                    weights._add(module, parameter.data, *found.pop(id(parameter)))
        weights.matrices.update(weights.experts)
        return weights

    def _add(self, module: nn.Module, tensor: Tensor, name: str, stored: Stored) -> None:
        self.names.append(name)
        views = stored.matrices(tensor)
        if stored.experts is None:
            self.layers[name], self.matrices[name] = module, views[0]
        else:
            self.experts |= {f"{name}[{number}]": view for number, view in enumerate(views)}

    def completed(self, sums: Sequence[Inputs], gram: bool) -> list[Inputs]:
        """The inputs of all matrices: what is assumed about experts that no text reached follows what was seen.

        Raises:
            UnsuitableError: no text reached another layer, or any expert of a tensor.
        """
        seen = [inputs for inputs in sums if inputs.positions]
        reached = {name for inputs in seen for name in inputs.layers}
        tensors = {name.partition("[")[0] for name in reached}
        unseen = []
        for name, matrix in self.matrices.items():
            if name in reached:
                continue
            if name.partition("[")[0] not in tensors and not (name in self.layers and ".experts." in name):
                raise UnsuitableError(f"attacks: no calibration text reaches {name}. Use more samples")
            unseen.append(Inputs.unseen(name, matrix.shape[1], matrix.device, gram))
        return [*seen, *unseen]


def _before_blocks(model: CausalLM, blocks: nn.ModuleList, ids: Sequence[int]) -> _TextStates:
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
