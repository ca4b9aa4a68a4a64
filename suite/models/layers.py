"""The parts of a model: the matrices of its linear layers, and its transformer blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROUTERS = frozenset(("gate", "router", "shared_expert_gate"))
"""Names of modules that send tokens to experts, or weigh these."""

STATE_SPACE = frozenset(("A_log", "D", "dt_proj_weight"))
"""Names of the parameters of state spaces that belong to no layer."""

EXPERTS = {
    "GraniteMoeParallelExperts": False,
    "InklingSharedExperts": False,
    "JetMoeParallelExperts": False,
    "Llama4TextExperts": True,
    "LongcatFlashExperts": False,
}
"""Modules of experts that do not say whether inputs come before outputs, as others do (`is_transposed`)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How a tensor holds the matrices of linear layers.

    Attributes:
        experts: number of experts, whose matrices follow each other along the first axis; None for one matrix.
        transposed: whether inputs come before outputs, as in GPT-2's Conv1D and gpt-oss's experts.
    """

    experts: int | None = None
    transposed: bool = False

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """Views of the tensor: one per expert, (outputs, inputs)."""
        each = [tensor] if self.experts is None else tensor.view(self.experts, -1, tensor.shape[-1]).unbind()
        return [matrix.T if self.transposed else matrix for matrix in each]

    def edited(self, tensor: Tensor, edit: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The tensor with every matrix edited on its own.

        Args:
            edit: gets a matrix, (outputs, inputs), and its expert's number, from 0; returns the edited matrix.
        """
        if self == PLAIN:
            return edit(tensor, 0)
        after = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        pairs = zip(self.matrices(tensor), self.matrices(after), strict=True)
        for expert, (source, destination) in enumerate(pairs):
            destination.copy_(edit(source.contiguous(), expert))
        return after


PLAIN = Stored()
"""One matrix, (outputs, inputs), as in nn.Linear."""


def is_linear(name: str, weight: Tensor) -> bool:
    """Whether a tensor looks like the weights of linear layers inside the network, by its name and shape.

    What deployed quantizers leave in full precision does not: embeddings and the output layer (bitsandbytes, GPTQ and
    AWQ alike), norms, biases, routers (GPTQ and AWQ), convolutions, and a state space's own parameters with the layer
    of its step sizes.
    """
    *_, module, own = ("", *name.split("."))
    return (
        (weight.ndim == 2 or (weight.ndim == 3 and sum(size > 1 for size in weight.shape) > 1))
        and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
        and "norm" not in module
        and not own.endswith("bias")
        and not ROUTERS & set(name.split("."))
        and not module.startswith("conv")
        and own not in STATE_SPACE
        and (module != "dt_proj" or "attn" in name)  # Doge's attention has one that is an ordinary layer
    )


def weights_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Stored | None]]:
    """What looks like weights of linear layers in a model: name, tensor, and how it is stored; None if that is unknown.

    A tied tensor comes under each of its names.
    """
    tables = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    embeddings = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
    for path, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            if is_linear(name, parameter) and id(parameter) not in embeddings:
                yield name, parameter, _stored(module, own, parameter)


def matrices_of(model: nn.Module) -> dict[str, Stored]:
    """How the weights of linear layers inside the network are stored, by name."""
    return {name: stored for name, _, stored in weights_of(model) if stored is not None}


def config_of(model: object) -> Any:
    """The config of a transformers model; None where it has none."""
    return getattr(model, "config", None)


def blocks_of(model: object) -> torch.nn.ModuleList | None:
    """The blocks of a transformers model: the outermost module list with as many entries as the config has layers."""
    count = getattr(config_of(model), "num_hidden_layers", None)
    if count is None or not isinstance(model, torch.nn.Module):
        return None
    return next((m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count), None)


def carries_state(model: nn.Module) -> bool:
    """Whether a model has layers that carry a state or mix neighbours, where padding is not masked as in attention."""
    config = config_of(model)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    return (
        bool(getattr(model, "_is_stateful", False))
        or any("attention" not in kind or "linear" in kind for kind in kinds)
        or any(isinstance(module, nn.Conv1d) for module in model.modules())
    )


def counts_columns(model: nn.Module) -> bool:
    """Whether a model's attention windows count columns of its input, whatever mask and positions it is given.

    GPT-Neo's local layers do. Texts that share a row, or a cache whose rows have different lengths, get wrong windows.
    """
    kinds = getattr(config_of(model), "attention_layers", None)
    return isinstance(kinds, list | tuple) and "local" in kinds


def rope_switch(model: nn.Module) -> int | None:
    """The length in tokens beyond which a model turns all positions of a pass by other angles; None without one.

    LongRoPE (Phi-3, Phi-4-mini) has a table for short texts and one for long ones, and takes for all texts of a batch
    that of the longest.
    """
    config = config_of(model)
    rope = getattr(config.get_text_config(), "rope_parameters", None) if config is not None else None
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))] if isinstance(rope, dict) else []
    lengths = (one.get("original_max_position_embeddings") for one in kinds if one.get("rope_type") == "longrope")
    return min((length for length in lengths if length), default=None)


def _stored(module: nn.Module, own: str, parameter: nn.Parameter) -> Stored | None:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return PLAIN
    if isinstance(module, Conv1D):
        return Stored(transposed=True)
    if type(module).__name__ == "DbrxExpertGLU":  # all experts' rows in one matrix
        return Stored(vars(module)["moe_num_experts"], transposed=own == "w2")
    transposed = EXPERTS.get(type(module).__name__, getattr(module, "is_transposed", None))
    if parameter.ndim == 3 and transposed is not None:
        return Stored(len(parameter), transposed)
    return None
