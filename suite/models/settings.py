"""Settings of the model: which one, its dtype and its prompt template."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from suite.config.numbers import LARGEST
from suite.config.settings import Settings
from suite.models.chat_template import DATE, DATE_FORMAT, Plain
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


TAKEN = frozenset(
    """
    messages conversation conversations chat_template tools documents add_generation_prompt continue_final_message
    tokenize padding truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs
    strftime_now raise_exception self
    """.split()
)
"""Names that transformers gives a template, or takes for itself."""


class TemplateArgs(Settings):
    """What a chat template is given besides the conversation: these, or any other name that it reads.

    Attributes:
        system: the system prompt; by default the template's own, if it has one. May be empty.
        date_string: the date that the template is told is today, such as 26 Jul 2024, which is the default.
        enable_thinking: whether the model thinks before it answers; by default not, where the template asks. If it
            does, its thoughts are a part of the answer that is scored.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]

    system: str | None = None
    date_string: str | None = None
    enable_thinking: bool | None = None

    @field_validator("date_string")
    @classmethod
    def _date(cls, date: str | None) -> str | None:
        try:
            if date is not None:
                datetime.strptime(date, DATE_FORMAT)
        except ValueError:
            raise ValueError(f"{date!r} is no date like {DATE}") from None
        return date

    @model_validator(mode="after")
    def _names(self) -> TemplateArgs:
        for name in self.__pydantic_extra__:
            if name in TAKEN or name.endswith(("_token", "_tokens")) or not re.fullmatch(r"[A-Za-z]\w*", name):
                raise ValueError(f"{name!r} is no name that a template can be given a value by. Take it out")
        return self

    def changed(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}

    def over(self, others: Mapping[str, Plain]) -> TemplateArgs:
        """These, and others that are not among them."""
        return TemplateArgs(**{**others, **self.changed()})


class ModelSpec(Settings):
    """The model before training on the task: `tiny`, made here, or a causal LM by path or hub id.

    Attributes:
        name: `tiny`, a folder, or `owner/model`, optionally with `@revision`.
        template: prompt format of a question; by default the tokenizer's chat template where it has one, else plain
            (`bare` for `tiny`).
        template_args: what the chat template is given.
    """

    name: CheckpointName = "tiny"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    template: Template | None = None
    template_args: TemplateArgs = TemplateArgs()
    tiny: TinyModel = TinyModel()

    @model_validator(mode="after")
    def _tiny_only(self) -> ModelSpec:
        if self.name != "tiny" and self.tiny != TinyModel():
            raise ValueError(f"tiny belongs to name=tiny, not to name={self.name}")
        return self
