"""Outputs named on the command line: one that cannot be written is told before the work begins, with exit code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import regrade
from tests.support.disks import mounted
from tests.support.hostile_board import good_board

pytestmark = pytest.mark.filterwarnings("error")


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(os.path.relpath(path))


NO_FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "Is a directory. What to do: name a file, such as"),
    "a FIFO": (os.mkfifo, "it is a pipe or the like. What to do: name a file"),
    "a socket": (_bind, "it is a pipe or the like"),
    "below a file": (lambda path: path.parent.rmdir() or path.parent.touch(), "Not a directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "below a link to nothing": (
        lambda path: path.parent.rmdir() or path.parent.symlink_to("gone"),
        "No such file or directory",
    ),
}


def words(verb: str, store: Path, out: Path) -> list[object]:
    return {
        "page": ["board", "page", "--store", store, "--out", out],
        "report": ["report", store, "--out", out],
        "import": ["import", "open-unlearning", store / "nowhere", "--json", out],
    }[verb]


@pytest.mark.parametrize("verb", ["page", "import"])
@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_is_told_before_the_work(tmp_path: Path, monkeypatch, verb: str, kind: str):
    monkeypatch.chdir(tmp_path)
    make, reason = NO_FILE[kind]
    (tmp_path / "board").mkdir()  # a board without a trial: said later, if this was not the first thing that is checked
    (tmp_path / "out").mkdir()
    make(tmp_path / "out" / "x")
    said = regrade(*words(verb, tmp_path, tmp_path / "out" / "x"), code=2).stderr
    assert said.startswith(f"regrade: {tmp_path}/out/x: not written, ") and reason in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["a file", "a FIFO"])
def test_what_is_no_folder_is_told_before_the_work(tmp_path: Path, make: Callable[[Path], object]):
    (tmp_path / "board").mkdir()
    make(tmp_path / "x")
    said = regrade(*words("report", tmp_path, tmp_path / "x"), code=2).stderr
    assert said == f"regrade: {tmp_path}/x: not written, Not a directory. What to do: name a folder\n"


@pytest.mark.parametrize("verb", ["page", "report", "import"])
def test_a_place_that_is_read_only_is_told_before_the_work(tmp_path: Path, verb: str):
    (tmp_path / "board").mkdir()
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs") as disk:
        for place in (disk / "x", disk / "new" / "x"):
            said = regrade(*words(verb, tmp_path, place), code=2).stderr
            assert "Read-only file system. What to do: name another place" in said
    assert "File name too long" in regrade(*words(verb, tmp_path, tmp_path / ("x" * 300)), code=2).stderr


def test_missing_folders_are_made_and_controls_in_a_path_are_shown(tmp_path: Path):
    good_board(tmp_path)
    out = tmp_path / "a" / "b\x1b[2J"
    assert f"page: {tmp_path}/a/b\\x1b[2J/x.html\n" in regrade(*words("page", tmp_path, out / "x.html")).stdout
    assert "\x1b" not in regrade(*words("report", tmp_path, out / "plots")).stdout
    assert {path.name for path in out.iterdir()} == {"x.html", "plots"}


def test_a_page_may_go_to_standard_output_through_a_pipe(tmp_path: Path):
    code = "from suite.cli.outputs import output_file as check; from leaderboard.storage import replace_file;"
    code += "from pathlib import Path; replace_file(check(Path('/dev/stdout'), 'x'), 'a page')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("a page", "")
