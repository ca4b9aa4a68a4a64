"""Gradient checkpointing: a block's activations are computed again in the backward pass instead of being kept.

Between forward and backward pass only what goes into each block stays in memory, and the activations of one block at a
time; the price is a second forward pass per gradient. No number changes: the same kernels run on the same inputs.
transformers' own switch works in training mode only, and models are in eval mode here, so that dropout is off.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from suite.config.errors import SpecError
from suite.models.layers import blocks_of


def checkpoint_blocks(model: torch.nn.Module) -> None:
    """Let each block of the model recompute its activations, from now on, wherever gradients are asked for.

    Where they are not (values, forward-mode derivatives) a block runs as before. The backward pass has to find the
    weights where the forward pass left them: a question at another place must last until its gradient is there.

    Raises:
        SpecError: the model's blocks are not found.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise SpecError(f"runtime.gradient_checkpointing: {type(model).__name__} has no list of blocks. Leave it off")
    for block in blocks:
        # The instance's forward, not a hook: hooks on a block (to end a pass there) fire once, in the forward pass.
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing random happens in eval mode, so there is no state to be put back.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
