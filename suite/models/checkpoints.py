"""Checkpoints as values: weights on disk, weights in memory, or a lazy edit of another checkpoint.

Each names its architecture, a folder with a config and a tokenizer, so that an engine can load it into a model that it
already holds. Only safetensors files are read, so no code from a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from suite.config.errors import CheckpointError
from suite.models.adapter_file import adapter_settings, largest_rank, lora_config
from suite.models.config_file import read_config
from suite.models.folder import library, one_line

State = dict[str, Tensor]


class Checkpoint(Protocol):
    """Weights, and the architecture that they belong to."""

    architecture: Path
    """Folder with config.json and the tokenizer's files."""

    def state(self) -> State:
        """Tensors by name, on the CPU. A tied tensor may be listed under only one of its names."""
        ...

    def model(self, device: torch.device | str = "cpu") -> torch.nn.Module:
        """A new model with these weights, in eval mode."""
        ...


@dataclass(frozen=True)
class KeyedCheckpoint:
    """A checkpoint and a key that determines its weights, for the keys of stages.

    Attributes:
        key: of the stage that made it, or another digest of its origin.
        part: which of that stage's checkpoints it is.
    """

    checkpoint: Checkpoint
    key: str
    part: str = ""


class _Loadable:
    architecture: Path

    def state(self) -> State:
        raise NotImplementedError

    def model(self, device: torch.device | str = "cpu") -> torch.nn.Module:
        state = self.state()
        try:
            model = skeleton(self.architecture, dtype_of(state))
            load_state(model, state)
        except CheckpointError as error:
            raise CheckpointError(f"{self.architecture}: {error}") from None
        return model.to(device)


@dataclass(frozen=True)
class SavedCheckpoint(_Loadable):
    """Weights in a folder as `save_pretrained` writes it, converted to `dtype` if one is given."""

    path: Path
    dtype: torch.dtype | None = None

    @property
    def architecture(self) -> Path:  # type: ignore[override]
        return self.path

    @property
    def files(self) -> list[Path]:
        """The safetensors files.

        Raises:
            CheckpointError: there are none.
        """
        files = sorted(self.path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.path}: no *.safetensors file here. Other formats are not read")
        return files

    def state(self) -> State:
        state: State = {}
        for file in self.files:
            with open_tensors(file) as tensors:
                state.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
        if self.dtype is None:
            return state
        return {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in state.items()}


@dataclass(frozen=True)
class LoraCheckpoint(_Loadable):
    """A LoRA adapter in a folder, as peft writes it, and the model that it was trained for.

    `state` has the adapter merged; an engine that supports adapters may apply it to the weights of `base` instead.
    """

    base: SavedCheckpoint
    path: Path

    CONFIG: ClassVar[str] = "adapter_config.json"
    WEIGHTS: ClassVar[str] = "adapter_model.safetensors"

    @property
    def architecture(self) -> Path:  # type: ignore[override]
        return self.base.architecture

    @property
    def config(self) -> dict[str, Any]:
        """The adapter's settings, checked."""
        return adapter_settings(self.path / self.CONFIG)

    @property
    def plain(self) -> bool:
        """Whether weights are W + scale * B A and no more: no replaced tensors, no biases, no DoRA magnitudes."""
        config = self.config
        extras = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")
        is_lora = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
        return is_lora and not any(map(config.get, extras))

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        return largest_rank(self.config)

    def state(self) -> State:
        from peft import PeftModel  # seconds to import

        if not (self.path / self.WEIGHTS).is_file():  # peft would load a pickle instead
            raise CheckpointError(f"{self.path}: no {self.WEIGHTS} here. Other formats are not read")
        with open_tensors(self.path / self.WEIGHTS):
            pass
        config, model = lora_config(self.path / self.CONFIG), self.base.model()
        with library(self.path, f"adapter for {self.base.path}", CheckpointError):
            adapted = PeftModel.from_pretrained(model, self.path, config=config, autocast_adapter_dtype=False)
            merged = adapted.merge_and_unload()
        return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


@dataclass(frozen=True)
class TensorCheckpoint(_Loadable):
    """Weights in memory."""

    tensors: State
    architecture: Path

    @classmethod
    def of(cls, model: torch.nn.Module, architecture: Path) -> TensorCheckpoint:
        """A copy of a model's current weights."""
        return cls({name: t.detach().to("cpu", copy=True) for name, t in model.state_dict().items()}, architecture)

    def state(self) -> State:
        return dict(self.tensors)


@dataclass(frozen=True)
class EditedCheckpoint(_Loadable):
    """Another checkpoint with an edit that is applied whenever the weights are read."""

    base: Checkpoint
    edit: Callable[[State], State]
    name: str

    @property
    def architecture(self) -> Path:  # type: ignore[override]
        return self.base.architecture

    def state(self) -> State:
        return self.edit(self.base.state())


def shapes_of(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in safetensors files, read from their headers.

    Raises:
        CheckpointError: a file is cut short or damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with open_tensors(file) as tensors:
            shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes


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


def interpolated(one: Checkpoint, other: Checkpoint, share: float) -> EditedCheckpoint:
    """(1 - share) one + share other, computed in fp32 and stored in the dtype of `one`. Bit-exact at 0 and at 1.

    Args:
        share: any number; outside of [0, 1] it extrapolates along the line through both.
    """

    def edit(state: State) -> State:
        other_state = other.state()
        return {
            name: weight.float().lerp(other_state[name].float(), share).to(weight.dtype)
            if weight.is_floating_point()
            else weight
            for name, weight in state.items()
            if name in other_state  # a tied tensor may be listed under only one of its names
        }

    return EditedCheckpoint(one, edit, f"mixed[share={share}]")


def context_of(folder: Path) -> int | None:
    """A model's context length in tokens; None where it sets no limit.

    Raises:
        SpecError: the folder's config.json cannot be used.
    """
    return getattr(read_config(folder).get_text_config(), "max_position_embeddings", None)


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of an architecture; None where a config does not say.

    Attributes:
        size: dimensions of a head.
        shared: number of key-value heads, which several query heads may share.
    """

    size: int | None
    shared: int | None


def heads_of(folder: Path) -> Heads:
    """A model's attention heads.

    Raises:
        SpecError: the folder's config.json cannot be used.
    """
    config = read_config(folder).get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    return Heads(size, getattr(config, "num_key_value_heads", None) or heads)


def skeleton(architecture: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A model of this architecture with arbitrary weights, in eval mode.

    Raises:
        SpecError: its config.json cannot be used.
        CheckpointError: transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = read_config(architecture)
    # Random initialization takes a hundred times as long as allocation. Where a module draws its weights all the same,
    # the caller's random state must not change.
    with library(architecture, "model", CheckpointError), no_init_weights(), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        model.tie_weights()  # otherwise done by the initialization
    return model


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
    def of(cls, model: torch.nn.Module) -> Layout:
        by_storage: dict[int, list[str]] = {}
        state = model.state_dict()
        for name, tensor in state.items():
            by_storage.setdefault(tensor.data_ptr(), []).append(name)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return cls(shapes, tuple(map(tuple, by_storage.values())))

    def chosen(self, given: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """One name for each stored tensor, among the names that a checkpoint gives (with their shapes).

        Raises:
            CheckpointError: a tensor is missing (and not tied to one that is there), unknown or of another shape.
        """
        if unknown := sorted(given.keys() - self.shapes.keys()):
            raise CheckpointError(f"the checkpoint has tensors that the architecture lacks: {', '.join(unknown[:3])}")
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


def load_state(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights into a model of the same architecture, in place.

    Raises:
        CheckpointError: a tensor is missing (and not tied to one that is there), unknown or of another shape.
    """
    own = model.state_dict()
    for name in Layout.of(model).chosen({name: tuple(tensor.shape) for name, tensor in state.items()}):
        own[name].copy_(state[name])


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


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of a model's weights; tied tensors count once."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dict(model.named_parameters()).items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
