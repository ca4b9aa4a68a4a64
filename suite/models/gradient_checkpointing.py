"""Gradient checkpointing: a block's activations are recomputed in the backward pass instead of being stored.

Only the inputs of all blocks and the activations of one block are in memory at a time; the price is a second forward
pass per gradient. No number changes, because the same kernels run on the same inputs. transformers' own switch works in
training mode only, and models are in eval mode here so that dropout is off.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from suite.config.errors import UnsuitableError
from suite.models.layers import blocks_of


def checkpoint_blocks(model: torch.nn.Module) -> None:
    """Turn on gradient checkpointing for each block of the model, for every later gradient.

    Without gradients (loss values, forward-mode derivatives) a block runs as before. The backward pass runs the forward
    pass again, so a gradient at displaced weights needs them in place until the backward pass is finished.

    Raises:
        UnsuitableError: the model's blocks are not found.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise UnsuitableError(
            f"runtime.gradient_checkpointing: {type(model).__name__} has no list of blocks. Leave it off"
        )
    for block in blocks:
        # Replace the instance's forward, inside the block's hooks: a hook that ends the pass there must fire only once.
        block.forward = partial(_checkpointed, block.forward)


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing is random in eval mode, so there is no random state to restore.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
