"""From the tensors on disk to those of a model, by transformers' own conversion, held to the letter.

Most families are stored as they are in memory. Others have other names on disk (GPT-2 on the hub has no prefix,
GPT-NeoX has `embed_out` in place of `lm_head`), or a tensor for each of many experts that are one tensor in memory.
transformers knows what belongs to what. It goes on with random weights where some are missing, and leaves out what it
does not know; here both are refused by name, and so is what is quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suite.config.errors import CheckpointError
from suite.models.folder import library, one_line
from suite.models.layout import Layout, listed, skeleton
from suite.models.weight_files import FLOATS, Header

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    from suite.models.causal_lm import CausalLM

State = dict[str, Tensor]

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

LEFT_OVER = re.compile(
    r"(^|\.)(rotary_emb|rotary)\.(inv_freq|cos_cached|sin_cached)$|(^|\.)(position_ids|causal_mask|embed_positions)$|"
    r"(^|\.)decoder\.version$|^v_head\."
)
"""Tensors that old releases saved and that no answer depends on: positions, and the value head of TRL's PPO."""

MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.(bias|masked_bias)$")
"""Causal masks that old releases saved. A bias of an attention has the same name, and one dimension."""

MOST_FORMS = 64


@dataclass(frozen=True)
class Form:
    """What a model of some config holds in memory, and how transformers gets there from names on disk.

    Attributes:
        dtypes: of its tensors by name: the model's own, except for what is always kept in fp32.
        words: names of the weights of its embeddings and of its output layer.
    """

    folder: Path
    dtype: torch.dtype
    layout: Layout
    dtypes: Mapping[str, torch.dtype]
    words: frozenset[str]
    ignored: re.Pattern[str] | None
    prefix: str
    renamings: list[WeightRenaming]
    converters: list[WeightConverter]

    @classmethod
    def of(cls, folder: Path, dtype: torch.dtype) -> Form:
        """The form of a folder's model in this dtype. It is made once for each config.

        Raises:
            ModelError, CheckpointError: the config cannot be used.
        """
        key = (folder / "config.json").read_bytes(), dtype
        if key not in _FORMS:
            if len(_FORMS) >= MOST_FORMS:
                _FORMS.clear()
            _FORMS[key] = cls._made(folder, dtype)
        form = _FORMS[key]
        # The folder that it was made from may be gone by now, or hold another config.
        return form if form.folder == folder else replace(form, folder=folder)

    @classmethod
    def _made(cls, folder: Path, dtype: torch.dtype) -> Form:
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        model = _empty(folder, dtype)
        steps = _conversion(model)
        patterns = set(model._keys_to_ignore_on_load_unexpected or ())
        return cls(
            folder,
            dtype,
            Layout.of(model),
            {name: tensor.dtype for name, tensor in model.state_dict().items()},
            frozenset(_word_tensors(model)),
            re.compile("|".join(f"({pattern})" for pattern in sorted(patterns))) if patterns else None,
            model.base_model_prefix,
            [one for one in steps if isinstance(one, WeightRenaming)],
            [one for one in steps if isinstance(one, WeightConverter)],
        )

    def counted(self, headers: Mapping[str, Header]) -> dict[str, Header]:
        """The tensors on disk without those that no model of this family reads.

        Raises:
            CheckpointError: the weights are quantized.
        """
        kept = {name: header for name, header in headers.items() if not self._left_over(name, header.shape)}
        if packed := {
            name: header
            for name, header in kept.items()
            if header.dtype not in FLOATS and self.dtypes.get(self.named(name)[0], self.dtype).is_floating_point
        }:
            name = min(packed)
            raise CheckpointError(
                f"{packed[name].file}: {name} has the type {packed[name].dtype}: the weights are quantized, and "
                "quantized weights are not read. Save the model de-quantized, in ordinary weights"
            )
        return kept

    def named(self, name: str) -> tuple[str, bool]:
        """The name in memory of what a tensor on disk is, or is a part of, and whether it is converted on the way."""
        from transformers.core_model_loading import rename_source_key

        found, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self._known)
        if found not in self.layout.shapes and name in self.layout.shapes:
            return name, False
        return found, pattern is not None

    @cached_property
    def _known(self) -> dict[str, bool]:
        return dict.fromkeys(self.layout.shapes, True)

    def is_stored_as_held(self, names: Iterable[str]) -> bool:
        """Whether these names on disk are those of a model of this form, tensor for tensor, and no others."""
        names = set(names)
        return all(any(name in names for name in tied) for tied in self.layout.stored) and all(
            name in self.layout.shapes and self.named(name) == (name, False) for name in names
        )

    def converted(self, tensors: Mapping[str, Tensor]) -> State:
        """The tensors in memory, made of those on disk. On torch's meta device only names and shapes are checked.

        Raises:
            CheckpointError: a tensor is missing, unknown, of another shape, or cannot be converted, by name.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = _empty(self.folder, self.dtype)
        device = next((tensor.device.type for tensor in tensors.values()), "cpu")
        settings = LoadStateDictConfig(
            device_map={"": device},
            dtype=self.dtype,
            dtype_plan=model._get_dtype_plan(self.dtype),
            weight_mapping=_conversion(model),
        )
        with library(self.folder, "weights", CheckpointError):
            found, _ = convert_and_load_state_dict_in_model(model, dict(tensors), settings)
        if found.conversion_errors:
            name, why = min(found.conversion_errors.items())
            raise CheckpointError(f"{name}: cannot be made of the checkpoint's tensors: {one_line(Exception(why))}")
        unknown = {name for name in found.unexpected_keys if not (self.ignored and self.ignored.search(name))}
        if unknown:
            raise CheckpointError(f"the checkpoint has tensors that the architecture lacks: {listed(unknown)}")
        for name, given, own in sorted(found.mismatched_keys):
            raise CheckpointError(f"{name}: the checkpoint has shape {tuple(given)}, the architecture {tuple(own)}")
        state = {
            name: tensor.detach()
            for name, tensor in model.state_dict(keep_vars=True).items()
            if name not in found.missing_keys
        }
        return state | self._constants(state)

    def _constants(self, state: State) -> State:
        """Buffers that the checkpoint lacks and whose values follow from the config."""
        lacking = [names[0] for names in self.layout.stored if not any(name in state for name in names)]
        if not lacking:
            return {}
        own = skeleton(self.folder, self.dtype)
        buffers = dict(own.named_buffers())
        for name in lacking:
            if name not in buffers:
                raise CheckpointError(f"the checkpoint lacks the tensor {name}")
        return {name: buffers[name] for name in lacking}

    def stored(self, state: Mapping[str, Tensor]) -> State:
        """The tensors under the names and in the shapes in which models of this family are published.

        The inverse of `converted`, as `save_pretrained` applies it.
        """
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(_empty(self.folder, self.dtype), dict(state))

    @cached_property
    def is_published_as_held(self) -> bool:
        """Whether models of this family are published under the names that they have in memory."""
        chosen = [names[0] for names in self.layout.stored]
        held = {name: torch.empty(self.layout.shapes[name], device="meta") for name in chosen}
        return self.stored(held).keys() == held.keys()

    def _left_over(self, name: str, shape: tuple[int, ...]) -> bool:
        found = self.named(name)[0]
        if found in self.layout.shapes:
            return False
        mask = MASK.search(name) and (len(shape) != 1 or shape == (1,))
        return bool(mask or LEFT_OVER.search(name) or (self.ignored and self.ignored.search(found)))


def _word_tensors(model: CausalLM) -> Iterator[str]:
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        yield from (f"{name}.weight" for name, module in model.named_modules() if module is layer)


_FORMS: dict[tuple[bytes, torch.dtype], Form] = {}


def _empty(folder: Path, dtype: torch.dtype) -> CausalLM:
    with torch.device("meta"):
        return skeleton(folder, dtype)


def _conversion(model: CausalLM) -> list[WeightConverter | WeightRenaming]:
    """What transformers does to a checkpoint's tensors, in this order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    return [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightConverter | WeightRenaming)]


def prevailing(headers: Mapping[str, Header]) -> torch.dtype:
    """Dtype of most weights, by number of elements.

    Raises:
        CheckpointError: there are none in floating point.
    """
    sizes: dict[torch.dtype, int] = {}
    for header in headers.values():
        if header.dtype in DTYPES:
            dtype = DTYPES[header.dtype]
            sizes[dtype] = sizes.get(dtype, 0) + torch.Size(header.shape).numel()
    if not sizes:
        raise CheckpointError("the checkpoint has no weights in floating point")
    return max(sizes, key=lambda dtype: sizes[dtype])
