"""The command, run in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from suite.cli import main


@dataclass
class Output:
    stdout: str
    stderr: str


def regrade(*words: object, code: int = 0, cwd: Path | None = None) -> Output:
    """Run the command in this process: importing torch anew for each of fifty calls would take minutes."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["regrade", *map(str, words)])
        if cwd:
            patch.chdir(cwd)
        try:
            main()
            ended = 0
        except SystemExit as end:
            ended = end.code or 0
    assert ended == code, out.getvalue() + err.getvalue()
    return Output(out.getvalue(), err.getvalue())
