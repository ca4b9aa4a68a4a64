"""What an engine in another process has to be told of an architecture, found out once for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from suite.models.checkpoints import Layout, context_of, skeleton

INCIDENTAL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a config that say nothing about the architecture."""


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        config: its config, written the same way wherever it is the same.
        context: longest text that it reads, in tokens; None where it sets no limit.
    """

    config: str
    context: int | None
    layout: Layout


class Architectures:
    """The architectures that were met, by their config."""

    def __init__(self) -> None:
        self._met: dict[str, Architecture] = {}

    def of(self, folder: Path) -> Architecture:
        text = (folder / "config.json").read_text()
        if text not in self._met:
            said = {key: value for key, value in json.loads(text).items() if key not in INCIDENTAL}
            layout = Layout.of(skeleton(folder, torch.bfloat16))  # of any dtype: no memory is touched
            self._met[text] = Architecture(json.dumps(said, sort_keys=True), context_of(folder), layout)
        return self._met[text]
