"""Which files of a folder hold a model's weights: those that transformers reads, and nothing else that lies there.

That is model.safetensors, or where there is none, the shards that model.safetensors.index.json names. A folder may hold
other safetensors files (an older save, `consolidated.safetensors`, an adapter), and they do not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from suite.config.errors import CheckpointError, ModelError
from suite.models.folder import brief, one_line, read_settings

if TYPE_CHECKING:
    import torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

NAMED = "transformers_weights"
"""Key of a config.json that names another file in place of both."""

FLOATS = frozenset(("F16", "BF16", "F32", "F64"))
"""Types of tensors, as a header writes them, that weights may have."""

TICK_NS = 2 * 10**9
"""Nanoseconds within which two writes of a file may have the same time: two seconds on the coarsest file systems."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FORMATS = {".gguf": "GGUF", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "MLX"}


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of a tensor. `dtype` is safetensors' name for it, `F32` for instance."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights, in the order of their names.

    Raises:
        CheckpointError: there are none, or a shard is missing, saying what is there and what to do.
        ModelError: the index or the config cannot be read.
    """
    config = folder / "config.json"
    named = read_settings(config).get(NAMED) if config.is_file() else None
    if named is not None:
        if not isinstance(named, str) or named != Path(named).name or not named.endswith((".safetensors", INDEX)):
            raise ModelError(f"{config}: {NAMED} is {brief(named)}, no safetensors file of this folder")
        return _shards(folder / named) if named.endswith(".json") else [_present(folder / named, config)]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    raise CheckpointError(f"{folder}: {_nothing_to_read(folder)}")


def _shards(index: Path) -> list[Path]:
    shards = read_settings(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: names no files in weight_map. Take the index of these weights")
    return [_present(index.parent / name, index) for name in sorted(set(shards.values()))]


def _present(file: Path, named_by: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"{named_by}: names {file.name}, which is not in the folder. Fetch it")
    return file


def _nothing_to_read(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir())
    others = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if others:
        return (
            f"has neither {WEIGHTS} nor {INDEX}, and {others[0]} is none that transformers reads. Rename it to "
            f"{WEIGHTS}, or fetch the index that names the shards"
        )
    if pickled := next((name for name in names if name.endswith(PICKLES)), None):
        return (
            f"no *.safetensors file here: the weights are in {pickled}, a pickle, which may execute code and is not "
            "read. Load it with transformers and save it with save_pretrained, which writes safetensors"
        )
    for name in names:
        if (kind := FORMATS.get(Path(name).suffix)) is not None:
            return (
                f"no *.safetensors file here: the weights are in {name}, in the format of {kind}, which is not read. "
                "Convert it to safetensors"
            )
    return f"no *.safetensors file here ({WEIGHTS}, or {INDEX} with its shards). Other formats are not read"


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """The tensors of safetensors files by name. Only the files' headers are read.

    Raises:
        CheckpointError: a file is cut short or damaged, or two of them hold a tensor of the same name.
    """
    headers: dict[str, Header] = {}
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name in headers:
                    raise CheckpointError(
                        f"{file}: holds {name}, and so does {headers[name].file.name}. Delete the file that does not "
                        "belong there"
                    )
                about = tensors.get_slice(name)
                headers[name] = Header(file, tuple(about.get_shape()), about.get_dtype())
    return headers


def shapes_of(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in safetensors files, read from their headers.

    Raises:
        CheckpointError: a file is cut short or damaged, or two of them hold a tensor of the same name.
    """
    return {name: header.shape for name, header in read_headers(files).items()}


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """A safetensors file, open for reading.

    Raises:
        CheckpointError: it is not there, cut short or damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: cut short or damaged ({one_line(error)}). Delete it and run again") from None


def check_finite(files: Iterable[Path], dtype: torch.dtype | None = None) -> None:
    """Check that the numbers in safetensors files are numbers. Each file is read once, until it is written again.

    Args:
        dtype: what they are converted to, and are numbers in, too.

    Raises:
        CheckpointError: one is NaN or infinite, naming its tensor.
    """
    for file in files:
        stat = file.stat()
        settled = abs(time.time_ns() - stat.st_mtime_ns) > TICK_NS  # else it may change again and look the same
        read = _not_finite if settled else _not_finite.__wrapped__
        if said := read(file, stat.st_size, stat.st_mtime_ns, dtype):
            raise CheckpointError(said)


@lru_cache(maxsize=1024)
def _not_finite(file: Path, size: int, modified: int, dtype: torch.dtype | None) -> str | None:
    with open_tensors(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(name)
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            least, most = tensor.aminmax()
            if not (least.isfinite() and most.isfinite()):
                count = int((~tensor.isfinite()).sum())
                return (
                    f"{file}: {name} holds NaN or infinite numbers ({count} of {tensor.numel()}), so nothing can be "
                    "compared with this model or trained from it. Take weights that are whole"
                )
            if dtype is not None and not (least.to(dtype).isfinite() and most.to(dtype).isfinite()):
                return (
                    f"{file}: {name} holds numbers up to {max(-least.item(), most.item()):.3g}, which are infinite in "
                    f"{str(dtype).removeprefix('torch.')} (model.dtype). Use a dtype that has them"
                )
    return None
