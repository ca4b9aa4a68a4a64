"""Settings of the model: which one, its dtype and its prompt template."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from suite.config.numbers import LARGEST
from suite.config.settings import Settings
from suite.models.encoding import Template


class TinyModel(Settings):
    """A Llama-architecture model and a byte-level BPE tokenizer that the suite makes for the task's own text."""

    hidden: int = Field(192, ge=8, le=16_384)
    layers: int = Field(2, ge=1, le=512)
    heads: int = Field(4, ge=1, le=1024)
    vocabulary: int = Field(1024, ge=258, le=1_000_000)
    context: int = Field(256, ge=16, le=1_000_000)

    @model_validator(mode="after")
    def _whole_heads(self) -> TinyModel:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} must be a multiple of 2 * heads={2 * self.heads}")
        numbers = self.hidden * (self.vocabulary + 13 * self.hidden * self.layers)
        if numbers > LARGEST:
            raise ValueError(
                f"hidden={self.hidden}, layers={self.layers} and vocabulary={self.vocabulary} make {numbers:,} "
                f"parameters, and at most {LARGEST:,} are made here. Name a pretrained model instead (model.name)"
            )
        return self


def nameable(name: str) -> str:
    """The name of a folder or of a model on the hub, as it is.

    Raises:
        ValueError: neither could have it.
    """
    if not name.strip():
        raise ValueError("is empty. Name a folder, tiny, or a hub id owner/model")
    if max(map(len, name.encode().split(b"/"))) > 255 or len(name) > 4000:
        raise ValueError(f"a name of {len(name)} characters, which is too long for a folder")
    if name.startswith("~") and os.path.expanduser(name) == name:
        raise ValueError(f"{name}: there is no such home folder. Name a folder, tiny, or a hub id owner/model")
    return name


CheckpointName = Annotated[str, AfterValidator(nameable)]
"""A folder, or `owner/model` on the hub, optionally with `@revision`."""


class ModelSpec(Settings):
    """The model before training on the task: `tiny`, made here, or a causal LM by path or hub id.

    Attributes:
        name: `tiny`, a folder, or `owner/model`, optionally with `@revision`.
        template: prompt format of a question; by default the tokenizer's chat template where it has one, else plain
            (`bare` for `tiny`).
    """

    name: CheckpointName = "tiny"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    template: Template | None = None
    tiny: TinyModel = TinyModel()

    @model_validator(mode="after")
    def _tiny_only(self) -> ModelSpec:
        if self.name != "tiny" and self.tiny != TinyModel():
            raise ValueError(f"tiny belongs to name=tiny, not to name={self.name}")
        return self
