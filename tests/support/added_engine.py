"""An engine of somebody else; `python -m tests.support.added_engine` runs commands where it is installed.

It must be run in a process of its own: what a spec may say is known once the settings have been imported.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, Literal, Self

import torch

import suite.engines
from suite.config.numbers import Count
from suite.config.registry import Registry
from suite.config.settings import Settings as NamedSettings
from suite.engines.base import EngineSettings
from suite.engines.transformers.engine import TransformersEngine
from suite.models.encoding import Encoder


class Patient(TransformersEngine):
    """transformers, with passes of a few positions at a time."""

    class Settings(NamedSettings):
        name: Literal["patient"] = "patient"
        positions: Count = 64

    @classmethod
    def build(cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Self:
        own: Any = settings.own(cls.Settings)
        return cls(encoder, dtype=dtype, device=device, batch_tokens=own.positions)


def main() -> None:
    """Run commands, a JSON list of their words, where the engine is in the registry before anything reads it."""
    suite.engines.ENGINES = Registry("engine", [*suite.engines.ENGINES.values(), Patient])
    from suite.cli import main as command

    for words in json.loads(sys.argv[1]):
        out, err, code = io.StringIO(), io.StringIO(), 0
        sys.argv = ["regrade", *words]
        with redirect_stdout(out), redirect_stderr(err):
            try:
                command()
            except SystemExit as end:
                code = end.code or 0
        print(json.dumps([code, out.getvalue(), err.getvalue()]))


if __name__ == "__main__":
    main()
