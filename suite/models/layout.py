"""The tensors of an architecture: their names, which of them are one and the same, and how weights are copied in."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from suite.config.errors import CheckpointError
from suite.models.config_file import read_config
from suite.models.folder import library

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

INITIALIZED = "_is_hf_initialized"
"""The mark of what transformers leaves alone when it initializes a model."""

SHOWN = 3
"""Names in a message."""


def skeleton(architecture: Path, dtype: torch.dtype) -> CausalLM:
    """A model of this architecture with arbitrary weights, in eval mode.

    Raises:
        ModelError: its config.json cannot be used.
        CheckpointError: transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = read_config(architecture)
    # Random initialization takes a hundred times as long as allocation. Where a module draws its weights all the same,
    # the caller's random state must not change.
    with library(architecture, "model", CheckpointError), no_init_weights(), torch.random.fork_rng(devices=[]):
        model: CausalLM = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        model.tie_weights()  # otherwise done by the initialization
        _widen(model, dtype)
        _compute_constants(model)
    return model


def _compute_constants(model: CausalLM) -> None:
    """Compute the buffers that no checkpoint holds (angles of positions) in fp32.

    As `from_pretrained` does. `from_config` computes them in the model's own dtype: GPT-J's and CodeGen's in bf16 turn
    position 1000 by an angle that is off by whole radians.
    """
    if any(tensor.is_meta for tensor in model.buffers()):
        return
    for tensor in model.state_dict(keep_vars=True).values():
        setattr(tensor, INITIALIZED, True)
    for module in model.modules():
        setattr(module, INITIALIZED, not module._non_persistent_buffers_set)
    model.initialize_weights()


def _widen(model: CausalLM, dtype: torch.dtype) -> None:
    """Keep in fp32 what transformers keeps in fp32 in a model of fewer bits: a router's correction, for instance.

    As `from_pretrained` does, and `from_config` does not.
    """
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in model._get_dtype_plan(dtype)]
    for name, tensor in model.state_dict(keep_vars=True).items() if patterns else ():
        if tensor.is_floating_point() and any(pattern.search(name) for pattern in patterns):
            tensor.data = tensor.data.to(torch.float32)


@dataclass(frozen=True)
class Layout:
    """The tensors of an architecture.

    Attributes:
        shapes: by name, in the order of the architecture.
        stored: the names of each stored tensor; several where it is tied.
    """

    shapes: Mapping[str, tuple[int, ...]]
    stored: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        by_tensor: dict[int, list[str]] = {}
        state = model.state_dict(keep_vars=True)
        for name, tensor in state.items():
            by_tensor.setdefault(id(tensor), []).append(name)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return cls(shapes, tuple(map(tuple, by_tensor.values())))

    def chosen(self, given: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """One name for each stored tensor, among the names that a checkpoint gives (with their shapes).

        Raises:
            CheckpointError: a tensor is missing (and not tied to one that is there), unknown or of another shape.
        """
        if unknown := given.keys() - self.shapes.keys():
            raise CheckpointError(f"the checkpoint has tensors that the architecture lacks: {listed(unknown)}")
        chosen = []
        for names in self.stored:
            present = [name for name in names if name in given]
            if not present:
                raise CheckpointError(f"the checkpoint lacks the tensor {names[0]}")
            for name in present:
                if self.shapes[name] != given[name]:
                    raise CheckpointError(
                        f"{name}: the checkpoint has shape {given[name]}, the architecture {self.shapes[name]}"
                    )
            chosen.append(present[0])
        return tuple(chosen)

    def contradictions(self, state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
        """Pairs of names that the architecture ties, and that these weights give different tensors."""
        pairs = []
        for names in self.stored:
            first, *others = [name for name in names if name in state] or [""]
            pairs += [(first, other) for other in others if not _equal(state[first], state[other])]
        return pairs


def listed(names: Collection[str]) -> str:
    """A few names for a message, in order."""
    first = sorted(names)[:SHOWN]
    return f"{', '.join(first)}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"


def _equal(one: Tensor, other: Tensor) -> bool:
    same = one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
    return same or torch.equal(one, other)


def load_state(model: CausalLM, state: Mapping[str, Tensor]) -> None:
    """Copy weights into a model of the same architecture, in place.

    Tensors that the architecture ties and that these weights give different values are untied, as transformers does.

    Raises:
        CheckpointError: a tensor is missing (and not tied to one that is there), unknown or of another shape.
    """
    model.tie_weights()  # the weights before these may have untied something
    layout = Layout.of(model)
    chosen = layout.chosen({name: tuple(tensor.shape) for name, tensor in state.items()})
    apart = [other for _, other in layout.contradictions(state)]
    for name in apart:
        untie(model, name)
    own = model.state_dict()
    for name in (*chosen, *apart):
        own[name].copy_(state[name])


def untie(model: nn.Module, name: str) -> None:
    """Give one of the names of a tied parameter a tensor of its own."""
    module, _, attribute = name.rpartition(".")
    parent = model.get_submodule(module)
    tensor = getattr(parent, attribute)
    setattr(parent, attribute, nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """Dtype of most weights, by number of elements.

    Raises:
        CheckpointError: there are none in floating point.
    """
    sizes: dict[torch.dtype, int] = {}
    for tensor in state.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        raise CheckpointError("the checkpoint has no weights in floating point")
    return max(sizes, key=lambda dtype: sizes[dtype])
