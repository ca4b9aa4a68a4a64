"""The residual stream: which matrices of a model write into it, identified by their names.

A block reads the stream, and the results of its output projections are added to it. The attacks here need to know every
matrix that writes, so a model with an unknown matrix in a block is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from suite.config.errors import UnsuitableError
from suite.models.checkpoints import skeleton
from suite.models.layers import blocks_of, matrices_of

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

WRITING = frozenset("o_proj out_proj dense c_proj down_proj fc2 fc_out dense_4h_to_h".split())
READING = frozenset(
    "q_proj k_proj v_proj qkv_proj c_attn Wqkv query_key_value q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj "
    "gate_proj up_proj gate_up_proj fc1 c_fc fc_in "
    "dense_h_to_4h gate router shared_expert_gate".split()
)
POSITIONS = frozenset(("wpe", "embed_positions"))
"""Learned position embeddings, which are added to the token embeddings."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A matrix whose outputs are added to the residual stream.

    Attributes:
        names: names of the tensor in a state; several if it is tied to others.
        axis: axis of the tensor along which the stream's units lie.
        bias: name of the tensor that is added to the outputs; its last axis is that of the stream.
        block: index of its block, from 0; None for embeddings.
        norm: name of the norm that the outputs pass through before they are added.
    """

    names: tuple[str, ...]
    axis: int
    bias: str | None = None
    block: int | None = None
    norm: str | None = None


def outline(architecture: Path) -> CausalLM:
    """A model without weights: its modules and the shapes of its tensors."""
    with torch.device("meta"):
        return skeleton(architecture, torch.float32)


def count_blocks(model: CausalLM) -> int:
    """Number of blocks of the model.

    Raises:
        UnsuitableError: the blocks are not found.
    """
    return len(_blocks(model)[1])


def block_writers(model: CausalLM) -> Iterator[Writer]:
    """The matrices with which the blocks write, in order.

    Raises:
        UnsuitableError: the model has no blocks, or a block contains an unknown matrix.
    """
    config, where = model.config, type(model).__name__
    if (
        not getattr(config, "do_layer_norm_before", True)
        or getattr(config, "apply_residual_connection_post_layernorm", False)
        or config.model_type == "openai-gpt"
    ):
        raise UnsuitableError(f"attacks: {where} ({config.model_type}) norms the residual stream itself. Leave it out")
    name, blocks = _blocks(model)
    matrices = matrices_of(model)
    for number, block in enumerate(blocks):
        tensors = dict(block.named_parameters())
        for own, tensor in tensors.items():
            stem = own.removesuffix(".weight")
            kind = stem.rpartition(".")[2].removesuffix("_bias")
            if tensor.ndim < 2 or kind in READING or own.endswith("_bias"):
                continue
            stored = matrices.get(f"{name}.{number}.{own}")
            if kind not in WRITING or stored is None:
                raise UnsuitableError(
                    f"attacks: {where} ({config.model_type}): whether {name}.{number}.{own} writes into the residual "
                    "stream is not known here. Leave the attack out"
                )
            bias = next((b for b in (f"{stem}.bias", f"{stem}_bias") if b in tensors), None)
            norm = _norm_after(block, stem)
            prefix = f"{name}.{number}."
            yield Writer(
                names=(prefix + own,),
                axis=tensor.ndim - (1 if stored.transposed else 2),
                bias=prefix + bias if bias else None,
                block=number,
                norm=prefix + norm if norm else None,
            )


def embedding_writers(model: CausalLM) -> Iterator[Writer]:
    """The matrices that write before the first block: embeddings of tokens and of positions.

    Raises:
        UnsuitableError: the model has other matrices outside its blocks.
    """
    inside = f"{_blocks(model)[0]}."
    head = model.get_output_embeddings()
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if not name.startswith(inside):
            names.setdefault(id(tensor), []).append(name)
    for tensor in dict(model.named_parameters()).values():
        if id(tensor) not in names:
            continue
        own = tuple(names[id(tensor)])
        if (
            tensor is model.get_input_embeddings().weight
            or own[0].removesuffix(".weight").rpartition(".")[2] in POSITIONS
        ):
            yield Writer(own, axis=1)
        elif (tensor.ndim > 1 and (head is None or tensor is not head.weight)) or "embed" in own[0]:
            raise UnsuitableError(
                f"attacks: {type(model).__name__} ({model.config.model_type}): what {own[0]} writes into the residual "
                "stream is not known here. Leave the attack out"
            )


def without(tensor: Tensor, axis: int, direction: Tensor, strength: float = 1.0) -> Tensor:
    """The tensor without `strength` times its component along a unit vector: W - strength r r^T W.

    Args:
        tensor: any float dtype, which the result keeps; computed in fp32.
        axis: axis along which `direction` lies. direction: (units,), fp32.
    """
    rows = tensor.float().movedim(axis, -1)
    component = (rows @ direction).unsqueeze(-1) * direction
    return (rows - strength * component).movedim(-1, axis).to(tensor.dtype)


def _blocks(model: CausalLM) -> tuple[str, nn.ModuleList]:
    blocks = blocks_of(model)
    if blocks is None:
        raise UnsuitableError(
            f"attacks: {type(model).__name__} ({model.config.model_type}) has no list of blocks. Leave the attack out"
        )
    return next(name for name, module in model.named_modules() if module is blocks), blocks


def _norm_after(block: nn.Module, stem: str) -> str | None:
    """The norm of a block that a matrix's outputs pass through, as in Gemma 2, OLMo 2 and GLM-4."""
    children = {name for name, _ in block.named_children()}
    if stem.startswith("mlp."):
        after = ["post_feedforward_layernorm", "post_mlp_layernorm"]
    else:
        # Without `post_feedforward_layernorm`, a norm named `post_attention_layernorm` precedes the feed-forward layer.
        after = ["post_self_attn_layernorm", *["post_attention_layernorm"] * ("post_feedforward_layernorm" in children)]
    return next((name for name in after if name in children), None)
