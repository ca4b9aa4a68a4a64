"""An engine and a diagnostic of somebody else. As a program it runs commands where both are installed.

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
import suite.evaluation.landscape
from suite.config.numbers import Count
from suite.config.registry import Registry
from suite.config.settings import Settings as NamedSettings
from suite.engines.base import EngineSettings
from suite.engines.transformers.engine import TransformersEngine
from suite.evaluation.landscape.base import Diagnostic, DiagnosticInputs, Reading
from suite.models.encoding import Encoder


class Patient(TransformersEngine):
    """transformers, with passes of a few positions at a time."""

    class Settings(NamedSettings):
        name: Literal["patient"] = "patient"
        positions: Count = 64

    cross_checked = True

    @classmethod
    def build(cls, settings: EngineSettings, encoder: Encoder, *, dtype: str, device: torch.device) -> Self:
        own: Any = settings.own(cls.Settings)
        engine = cls(encoder, dtype=dtype, device=device, batch_tokens=own.positions)
        engine.name = f"patient{own.positions}-{dtype}"  # no row of another number of positions has its key
        return engine

    build_alone = build


class Largest(Diagnostic):
    """The largest weight."""

    class Settings(NamedSettings):
        name: Literal["largest"] = "largest"

    source = "a test"
    reads_texts, reads_anchors = False, False

    def compute(self, inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
        largest = max(float(weights.abs().max()) for weights in inputs.checkpoint.state().values())
        return [Reading("largest_weight", "all", largest, None, 1)], {}


def main() -> None:
    """Run commands, a JSON list of their words, where the engine is in the registry before anything reads it."""
    suite.engines.ENGINES = Registry("engine", [*suite.engines.ENGINES.values(), Patient])
    landscape = suite.evaluation.landscape
    landscape.DIAGNOSTICS = Registry("diagnostic", [*landscape.DIAGNOSTICS.values(), Largest])
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
