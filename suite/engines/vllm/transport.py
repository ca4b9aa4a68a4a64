"""Sends weights to an engine in another process: as files that it reads itself, or as bytes that it maps.

vLLM knows the tensors of a family by the names under which its models are published, which may not be those that they
have in memory (see `suite.models.conversion`). So files go as they are, without what no model reads, and weights in
memory under the names that a save would give them.

Bytes are sent as numpy arrays, which Ray's object store shares with every process of a machine without a copy,
whatever their dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from suite.config.errors import CheckpointError
from suite.models.checkpoints import Checkpoint, SavedCheckpoint
from suite.models.conversion import Form, State
from suite.models.layout import Layout, dtype_of
from suite.models.weight_files import Header, open_tensors


class WeightSource(Protocol):
    """Tensors by name, each stored tensor once, in the order of the architecture's blocks."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class FileSource:
    """Safetensors files that the engine's machine can read, and which of their tensors to load.

    Attributes:
        stamps: size and modification time of each file. If both are equal, the weights are assumed to be equal.
    """

    files: Mapping[Path, tuple[str, ...]]
    stamps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, checkpoint: SavedCheckpoint, layout: Layout) -> FileSource:
        """Describe a checkpoint on disk. Only the headers of its files are read, unless tied tensors are there twice.

        Raises:
            CheckpointError: the files are cut short, or do not fit the architecture.
        """
        form, headers = checkpoint.headers()
        checkpoint.check()
        held = {form.named(name)[0]: name for name in headers}
        for names in layout.stored:
            _check_tied([(name, headers[held[name]], held[name]) for name in names if name in held])
        repeated = {name for names in layout.stored for name in [name for name in names if name in held][1:]}
        place = {name: number for number, name in enumerate(layout.shapes)}
        files: dict[Path, list[str]] = {}
        for name in sorted(headers, key=lambda name: place[form.named(name)[0]]):
            if form.named(name)[0] not in repeated:
                files.setdefault(headers[name].file, []).append(name)
        stats = [file.stat() for file in files]
        stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
        return cls({file: tuple(names) for file, names in files.items()}, stamps)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Raises CheckpointError if a file has been damaged since its header was read."""
        for file, names in self.files.items():
            with open_tensors(file) as opened:
                for name in names:
                    yield name, opened.get_tensor(name)


@dataclass(frozen=True, eq=False)
class MemorySource:
    """The bytes of each tensor, with its dtype and shape."""

    arrays: Mapping[str, tuple[np.ndarray, torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, state: State, layout: Layout, form: Form | None = None) -> MemorySource:
        """Wrap weights in memory. No bytes are copied here, unless the family is published in another form.

        Args:
            form: of the weights; None where the family is published as it is held in memory.

        Raises:
            CheckpointError: they do not fit the architecture.
        """
        chosen = layout.chosen({name: tuple(tensor.shape) for name, tensor in state.items()})
        for one, other in layout.contradictions(state):
            raise _untied(one, other)
        state = {name: state[name] for name in chosen}
        if form is not None and not form.is_published_as_held:
            state = form.stored(state)
        return cls({name: _as_bytes(tensor) for name, tensor in state.items()})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        with warnings.catch_warnings():  # mapped bytes are read-only, and nothing here writes to them
            warnings.simplefilter("ignore", UserWarning)
            for name, (array, dtype, shape) in self.arrays.items():
                yield name, torch.from_numpy(array).view(dtype).reshape(shape)


def weights_of(checkpoint: Checkpoint, layout: Layout) -> WeightSource:
    """The weights of a checkpoint, checked against the architecture before any engine sees them.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, unknown or of another shape.
    """
    if isinstance(checkpoint, SavedCheckpoint):
        form, headers = checkpoint.headers()
        if form.is_published_as_held or not form.is_stored_as_held(headers):
            return FileSource.of(checkpoint, layout)
    state = checkpoint.state()
    return MemorySource.of(state, layout, Form.of(checkpoint.architecture, dtype_of(state)))


def _check_tied(tensors: list[tuple[str, Header, str]]) -> None:
    """Check that tensors that the config ties are equal, where a checkpoint has more than one of them.

    Args:
        tensors: the name in memory, the header, and the name in the file.
    """
    if len(tensors) < 2:
        return
    first: Tensor | None = None
    for name, header, stored in tensors:
        with open_tensors(header.file) as opened:
            tensor = opened.get_tensor(stored)
        if first is not None and not torch.equal(first, tensor):
            raise _untied(tensors[0][0], name)
        first = tensor if first is None else first


def _untied(one: str, other: str) -> CheckpointError:
    return CheckpointError(
        f"the config ties {one} and {other}, and the checkpoint has different tensors for them: vLLM would use one for "
        "both. Use the transformers engine, or set tie_word_embeddings to false in its config.json"
    )


def _as_bytes(tensor: Tensor) -> tuple[np.ndarray, torch.dtype, tuple[int, ...]]:
    contiguous = tensor.detach().cpu().contiguous()
    return contiguous.reshape(-1).view(torch.uint8).numpy(), contiguous.dtype, tuple(contiguous.shape)
