"""Weights on their way to an engine in another process: files that it reads itself, or bytes that it maps.

Bytes travel as numpy arrays, which Ray's object store hands to every process of a machine without a copy, whatever
their dtype.
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

from suite.models.checkpoints import Checkpoint, Layout, SavedCheckpoint, State, open_tensors


class WeightSource(Protocol):
    """Tensors by name, each stored tensor once, in the order of the architecture's blocks."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class FileSource:
    """Safetensors files that the engine's machine can read, and which tensors of theirs to take.

    Attributes:
        stamps: size and time of each file. With the same ones a file is taken to hold the same weights.
    """

    files: Mapping[Path, tuple[str, ...]]
    stamps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, checkpoint: SavedCheckpoint, layout: Layout) -> FileSource:
        """A checkpoint on disk. Only the files' headers are read here.

        Raises:
            CheckpointError: the files are cut short, or not of the architecture.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        places: dict[str, Path] = {}
        for file in checkpoint.files:
            with open_tensors(file) as found:
                for name in found.keys():  # noqa: SIM118
                    shapes[name], places[name] = tuple(found.get_slice(name).get_shape()), file
        files: dict[Path, list[str]] = {}
        for name in layout.chosen(shapes):
            files.setdefault(places[name], []).append(name)
        found = [file.stat() for file in files]
        stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in found)
        return cls({file: tuple(names) for file, names in files.items()}, stamps)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Raises CheckpointError where a file has been damaged since it was looked at."""
        for file, names in self.files.items():
            with open_tensors(file) as found:
                for name in names:
                    yield name, found.get_tensor(name)


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Bytes of each tensor with its dtype and shape."""

    held: Mapping[str, tuple[np.ndarray, torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, state: State, layout: Layout) -> MemorySource:
        """Weights in memory. No bytes are copied here.

        Raises:
            CheckpointError: they are not those of the architecture.
        """
        chosen = layout.chosen({name: tuple(tensor.shape) for name, tensor in state.items()})
        return cls({name: _held(state[name]) for name in chosen})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        with warnings.catch_warnings():  # mapped bytes are read-only, and nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            for name, (array, dtype, shape) in self.held.items():
                yield name, torch.from_numpy(array).view(dtype).reshape(shape)


def weights_of(checkpoint: Checkpoint, layout: Layout) -> WeightSource:
    """The weights of a checkpoint, checked against the architecture before any engine sees them.

    Raises:
        CheckpointError: a file is missing or damaged; a tensor is missing, unknown or of another shape.
    """
    if isinstance(checkpoint, SavedCheckpoint):
        return FileSource.of(checkpoint, layout)
    return MemorySource.of(checkpoint.state(), layout)


def _held(tensor: Tensor) -> tuple[np.ndarray, torch.dtype, tuple[int, ...]]:
    whole = tensor.detach().cpu().contiguous()
    return whole.reshape(-1).view(torch.uint8).numpy(), whole.dtype, tuple(whole.shape)
