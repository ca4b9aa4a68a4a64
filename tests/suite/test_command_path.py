"""The command imports our own packages, whatever lies in the working directory and whatever the path says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules of somebody else's that have our packages' names."""
    for name in ("suite", "tasks", "leaderboard", "typer"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w'); raise SystemExit('imported')")
    return tmp_path


COMMANDS = {
    "the script": [sys.executable, str(ROOT / "regrade.py")],
    "the module": [sys.executable, "-m", "regrade"],
}


@pytest.mark.parametrize("path", ["", ":", "/foo:", "."], ids=repr)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_module_in_the_working_directory_is_not_ours(folder, command, path):
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}" if command == "the module" else path}
    call = [*COMMANDS[command], "board", "--help"]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The leaderboard of a store" in done.stdout
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "closed", ["<&-", ">&- 2>&- <&-", *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-"))]
)
def test_closed_streams_change_no_exit_code(tmp_path, closed):
    for words, code in (("ls optimizers", 0), ("run nothing.yaml", 2)):
        command = f"{sys.executable} {ROOT / 'regrade.py'} {words} {closed}"
        assert subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True).returncode == code
