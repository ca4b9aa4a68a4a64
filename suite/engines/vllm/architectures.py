"""The facts about an architecture that an engine in another process needs, determined once for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from suite.models.checkpoints import context_of
from suite.models.layout import Layout, skeleton

IRRELEVANT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a config that do not affect the architecture."""


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        config: its config in a canonical form: equal configs give equal strings.
        context: maximum text length, in tokens; None if it has no limit.
    """

    config: str
    context: int | None
    layout: Layout


class Architectures:
    """A cache of architectures by their config."""

    def __init__(self) -> None:
        self._by_config: dict[str, Architecture] = {}

    def of(self, folder: Path) -> Architecture:
        text = (folder / "config.json").read_text()
        if text not in self._by_config:
            relevant = {key: value for key, value in json.loads(text).items() if key not in IRRELEVANT}
            layout = Layout.of(skeleton(folder, torch.bfloat16))  # the dtype does not matter: no memory is allocated
            self._by_config[text] = Architecture(json.dumps(relevant, sort_keys=True), context_of(folder), layout)
        return self._by_config[text]
