"""The rooms: what each gives to the others, and what is light to import. `make lint` holds the arrows between them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = sorted(p.parent for package in ("suite", "leaderboard") for p in (ROOT / package).glob("*/__init__.py"))


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Dotted names that a file imports from the project's packages, the name that is taken last."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((*node.module.split("."), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)


def test_suite_has_rooms_and_no_loose_module():
    loose = {p.name for p in (ROOT / "suite").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert not loose
    assert len([room for room in ROOMS if room.parent.name == "suite"]) <= 25


def test_a_room_is_entered_by_what_it_says_that_it_gives():
    """`__all__` of a room names the modules, or the names, that other rooms take from it."""
    given = {room.relative_to(ROOT).parts: _given(room) for room in ROOMS}
    for room in ROOMS:
        for file in room.rglob("*.py"):
            for name in imports(file):
                other = name[:2]
                if other in given and other != room.relative_to(ROOT).parts and len(name) > 2:
                    assert name[2] in given[other], f"{file.relative_to(ROOT)} takes {'.'.join(name)}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_what_a_room_gives_is_there(room):
    name = ".".join(room.relative_to(ROOT).parts)
    module = importlib.import_module(name)
    assert module.__doc__
    for one in _given(room):
        assert hasattr(module, one) or (room / f"{one}.py").exists() or (room / one / "__init__.py").exists(), one


def _given(room: Path) -> list[str]:
    """`__all__`, read without importing anything."""
    for node in ast.parse((room / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


HEAVY = {"torch", "transformers", "ray"}


@pytest.mark.parametrize(
    "modules",
    [
        ["suite.storage.stages", "suite.storage.leases", "suite.config.settings"],
        ["suite.storage.store"],
        ["suite.spec.yaml_file"],
        ["suite.cli"],
        ["tasks", "leaderboard", "leaderboard.ranking.rank", "leaderboard.page"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_imports_no_torch(modules):
    code = f"import sys, {', '.join(modules)}; print(*{sorted(HEAVY)!r}, *(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == sorted(HEAVY)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["ls", "tasks"], 0),
        (["board", "show", "--store", "STORE", "--floor", "0.8"], 0),
        (["board", "page", "--store", "STORE", "--out", "PAGE"], 0),
        (["board", "show", "--store", "NOWHERE"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_needs_no_model_runs_without_torch(words, code, tmp_path):
    with tarfile.open(ROOT / "tests" / "stores" / "before-the-rooms.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    places = {"STORE": tmp_path / "quickstart", "PAGE": tmp_path / "page.html", "NOWHERE": tmp_path / "nowhere"}
    program = f"""
import sys
import tarfile
from suite.cli import main
sys.argv = {["regrade", *(str(places.get(word, word)) for word in words)]!r}
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
print(code, *({HEAVY!r} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.split("\n")[-2] == str(code)
