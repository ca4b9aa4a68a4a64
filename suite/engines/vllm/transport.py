"""Sends weights to an engine in another process: as files that it reads itself, or as bytes that it maps.

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

from suite.models.checkpoints import Checkpoint, Layout, SavedCheckpoint, State, open_tensors


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
        """Describe a checkpoint on disk. Only the headers of its files are read here.

        Raises:
            CheckpointError: the files are cut short, or do not fit the architecture.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        places: dict[str, Path] = {}
        for file in checkpoint.files:
            with open_tensors(file) as opened:
                for name in opened.keys():  # noqa: SIM118
                    shapes[name], places[name] = tuple(opened.get_slice(name).get_shape()), file
        files: dict[Path, list[str]] = {}
        for name in layout.chosen(shapes):
            files.setdefault(places[name], []).append(name)
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
    def of(cls, state: State, layout: Layout) -> MemorySource:
        """Wrap weights in memory. No bytes are copied here.

        Raises:
            CheckpointError: they do not fit the architecture.
        """
        chosen = layout.chosen({name: tuple(tensor.shape) for name, tensor in state.items()})
        return cls({name: _as_bytes(state[name]) for name in chosen})

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
        return FileSource.of(checkpoint, layout)
    return MemorySource.of(checkpoint.state(), layout)


def _as_bytes(tensor: Tensor) -> tuple[np.ndarray, torch.dtype, tuple[int, ...]]:
    contiguous = tensor.detach().cpu().contiguous()
    return contiguous.reshape(-1).view(torch.uint8).numpy(), contiguous.dtype, tuple(contiguous.shape)
