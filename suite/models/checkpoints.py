"""Checkpoints as values: weights on disk, weights in memory, or a lazy edit of another checkpoint.

Each names its architecture, a folder with a config and a tokenizer, so that an engine can load it into a model that it
already holds. Only safetensors files are read, so no code from a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from suite.config.errors import CheckpointError
from suite.models.adapter_file import adapter_settings, largest_rank, largest_token, lora_config
from suite.models.config_file import read_config, setting
from suite.models.conversion import Form, State, prevailing
from suite.models.decoding_settings import ends_of
from suite.models.folder import library
from suite.models.layout import dtype_of, listed, load_state, skeleton, untie
from suite.models.weight_files import FLOATS, Header, open_tensors, read_headers, shapes_of, weight_files

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


class Checkpoint(Protocol):
    """Weights, and the architecture that they belong to."""

    @property
    def architecture(self) -> Path:
        """Folder with config.json and the tokenizer's files."""
        ...

    def state(self) -> State:
        """Tensors by name, on the CPU. A tied tensor may be listed under only one of its names."""
        ...

    def model(self, device: torch.device | str = "cpu") -> CausalLM:
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
    """Makes a checkpoint's model of its state."""

    def model(self: Checkpoint, device: torch.device | str = "cpu") -> CausalLM:
        state = self.state()
        try:
            model = skeleton(self.architecture, dtype_of(state))
            load_state(model, state)
        except CheckpointError as error:
            raise CheckpointError(f"{self.architecture}: {error}") from None
        _say_whether_tied(model)
        if ends := ends_of(self.architecture):  # also of a copy that is saved
            model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        return model.to(device)


def _say_whether_tied(model: CausalLM) -> None:
    """Write into a model's config that its output layer is not that of its embeddings, where the weights say so."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not embeddings.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


@dataclass(frozen=True)
class SavedCheckpoint(_Loadable):
    """Weights in a folder as transformers reads it, converted to `dtype` if one is given."""

    path: Path
    dtype: torch.dtype | None = None

    @property
    def architecture(self) -> Path:
        return self.path

    @property
    def files(self) -> list[Path]:
        """The safetensors files with the weights.

        Raises:
            CheckpointError: there are none, or one is missing.
        """
        return weight_files(self.path)

    def headers(self) -> tuple[Form, dict[str, Header]]:
        """The form of the model, and the tensors on disk that it is made of. Only the files' headers are read.

        Raises:
            ModelError, CheckpointError: the files are damaged, or the weights are quantized.
        """
        found = read_headers(self.files)
        with self._named():
            form = Form.of(self.path, self.dtype or prevailing(found))
        return form, form.counted(found)

    def check(self) -> None:
        """Check from the headers alone that the weights are those of the config's model.

        Raises:
            ModelError, CheckpointError: they are not, by name.
        """
        form, headers = self.headers()
        with self._named():
            if form.is_stored_as_held(headers):
                form.layout.chosen({name: header.shape for name, header in headers.items()})
            else:
                form.converted({name: torch.empty(h.shape, device="meta") for name, h in headers.items()})

    def state(self) -> State:
        form, headers = self.headers()
        state: State = {}
        for file in dict.fromkeys(header.file for header in headers.values()):
            with open_tensors(file) as tensors:
                for name in (name for name, header in headers.items() if header.file == file):
                    state[name] = tensors.get_tensor(name)
        if not form.is_stored_as_held(headers):
            with self._named():
                return form.converted(state)
        if self.dtype is None:
            return state
        return {name: t.to(form.dtypes[name]) if t.is_floating_point() else t for name, t in state.items()}

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None


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
    def architecture(self) -> Path:
        return self.base.architecture

    @property
    def config(self) -> dict[str, Any]:
        """The adapter's settings, checked."""
        return adapter_settings(self.path / self.CONFIG)

    @property
    def plain(self) -> bool:
        """Whether weights are W + scale * B A and no more: no replaced tensors, no biases, no DoRA magnitudes."""
        config = self.config
        extras = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters")
        is_lora = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
        return is_lora and not any(map(config.get, extras)) and not self._changes_words

    @property
    def _changes_words(self) -> bool:
        """Whether it changes the embeddings or the output layer, one of which may be tied to the other."""
        form, _ = self.base.headers()
        layers = [f".{name.rpartition('.')[0]}." for name in form.words]
        return any(layer in name for layer in layers for name in shapes_of([self.path / self.WEIGHTS]))

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        return largest_rank(self.config)

    def check(self) -> None:
        """Check that the adapter's tensors are those of its settings and of the model, and can be merged.

        Only the headers of files are read: peft makes the adapted model on torch's meta device, and what it would save
        of it has to be in the file.

        Raises:
            CheckpointError: they are not, by name.
        """
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict  # seconds to import

        file = self.path / self.WEIGHTS
        if not file.is_file():  # peft and vLLM would load a pickle instead
            raise CheckpointError(f"{self.path}: no {self.WEIGHTS} here. Other formats are not read")
        given = read_headers([file])
        if packed := sorted(name for name, header in given.items() if header.dtype not in FLOATS):
            raise CheckpointError(
                f"{file}: {packed[0]} has the type {given[packed[0]].dtype}, and quantized weights are not read. Save "
                "the adapter in ordinary weights"
            )
        form, _ = self.base.headers()
        config = lora_config(self.path / self.CONFIG)
        config.init_lora_weights = False  # a singular value decomposition needs numbers
        with self._peft(), torch.device("meta"):
            adapted = get_peft_model(skeleton(self.base.path, form.dtype), config)
            wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            if lacking := wanted.keys() - given.keys():
                raise CheckpointError(
                    f"{file}: lacks tensors that {self.CONFIG} says are there: {listed(lacking)}. Take the adapter "
                    "with its own config"
                )
            tensors = {name: torch.empty(header.shape) for name, header in given.items()}
            loaded: Any = set_peft_model_state_dict(adapted, tensors)  # peft annotates it with no type
            unknown = loaded.unexpected_keys
            _part_tied(adapted)
            adapted.merge_and_unload()
        if unknown:
            raise CheckpointError(
                f"{file}: holds tensors that belong to no layer of the model: {listed(unknown)}. Take the adapter of "
                "this model"
            )
        rows = min(form.layout.shapes[name][0] for name in form.words)
        if (token := largest_token(self.config)) >= rows:
            raise CheckpointError(
                f"{self.path / self.CONFIG}: trainable_token_indices has {token}, and the model has {rows} tokens. "
                "Take the adapter of this model"
            )

    def state(self) -> State:
        from peft import PeftModel

        self.check()
        config, model = lora_config(self.path / self.CONFIG), self.base.model()
        with self._peft():
            adapted = PeftModel.from_pretrained(model, self.path, config=config, autocast_adapter_dtype=False)
            _part_tied(adapted)
            merged = adapted.merge_and_unload()
        return {name: tensor.detach() for name, tensor in merged.state_dict().items()}

    @contextmanager
    def _peft(self) -> Iterator[None]:
        with library(self.path, f"adapter for {self.base.path}", CheckpointError), catch_warnings():
            simplefilter("ignore")
            yield


def _part_tied(model: nn.Module) -> None:
    """Give every layer a tensor of its own.

    peft merges in place: what is added to the output layer would be added to embeddings that are tied to it, and what
    is added to both, twice.
    """
    seen: set[int] = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) in seen:
            untie(model, name)
        seen.add(id(parameter))


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
    def architecture(self) -> Path:
        return self.base.architecture

    def state(self) -> State:
        return self.edit(self.base.state())


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
        ModelError: the folder's config.json cannot be used.
    """
    length = getattr(read_config(folder).get_text_config(), "max_position_embeddings", None)
    return None if length == -1 else length  # XLNet's way to say that there is none


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
        ModelError: the folder's config.json cannot be used.
    """
    config = read_config(folder).get_text_config()
    heads, size = setting(config, "num_attention_heads"), setting(config, "head_dim")
    if not size and isinstance(heads, int) and heads:
        size = config.hidden_size // heads
    shared = setting(config, "num_key_value_heads") or heads
    return Heads(*(one if isinstance(one, int) else None for one in (size, shared)))


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of a model's weights; tied tensors count once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(dict(model.named_parameters()).items()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
