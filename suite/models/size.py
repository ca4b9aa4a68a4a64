"""Whether the weights in a folder can be those of the model that its config describes, before either takes memory.

Only the headers of the safetensors files are read. The model is built without memory (on torch's meta device), and that
ends as soon as it has more tensors or numbers than the headers list: a config of a few bytes can ask for terabytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from suite.config.errors import CheckpointError, ModelError
from suite.models.folder import library

Shapes = dict[str, tuple[int, ...]]

MODULES_PER_TENSOR = 16
BUFFERS = 2**30
"""Numbers in a model's buffers (masks, positions), which no file lists: a gigabyte of bytes."""


class TooLarge(Exception):
    """The model is larger than the weights that are there for it. Internal: it ends the building and
    becomes a `ModelError`."""


def check_memory(files: Sequence[Path]) -> None:
    """Check that the memory of this machine holds the content of these files.

    Raises:
        CheckpointError: it does not.
    """
    needed = sum(file.stat().st_size for file in files)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise CheckpointError(
            f"{', '.join(map(str, files))}: the weights take {needed / 2**30:.0f} GiB, and this machine has a memory "
            f"of {memory / 2**30:.0f} GiB. Use a machine with more, or a smaller model"
        )


def check_size(folder: Path, shapes: Shapes, config: Any) -> None:
    """Check that the model of a config is no larger than the weights beside it.

    Raises:
        ModelError: it is, or transformers cannot build a model of this config.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    numbers = sum(map(prod, shapes.values()))
    with (
        library(folder / "config.json", "model"),
        no_init_weights(),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):
        try:
            with _at_most(tensors=len(shapes), numbers=numbers):
                AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        except TooLarge as error:
            raise ModelError(
                f"{folder}/config.json: describes a model with {error} than the {len(shapes)} tensors ({numbers} "
                f"numbers) of {folder}/*.safetensors. Take the config of these weights"
            ) from None


@contextmanager
def _at_most(tensors: int, numbers: int) -> Iterator[None]:
    """End the building of a model in this thread with TooLarge once it has more than so much.

    A tied tensor is built under each of its names, so twice as much is allowed.
    """
    thread, seen = threading.get_ident(), {"modules": 0, "tensors": 0, "numbers": 0, "buffers": 0}
    limits = {
        "modules": MODULES_PER_TENSOR * (tensors + 64),
        "tensors": 2 * tensors + 64,
        "numbers": 2 * numbers + 2**16,
        "buffers": BUFFERS,
    }

    def count(**more: int) -> None:
        if threading.get_ident() != thread:  # the hooks are the process's
            return
        for what, number in more.items():
            seen[what] += number
            if seen[what] > limits[what]:
                raise TooLarge(f"more {what}")

    def size(tensor: torch.Tensor | None) -> int:
        return 0 if tensor is None else tensor.numel()

    hooks = (
        register_module_module_registration_hook(lambda *_: count(modules=1)),
        register_module_parameter_registration_hook(lambda _, __, tensor: count(tensors=1, numbers=size(tensor))),
        register_module_buffer_registration_hook(lambda _, __, tensor: count(buffers=size(tensor))),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
