"""What the pages show exists: specs that are valid, methods that are registered, tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from suite.adapters import ADAPTERS
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS
from suite.smoothing import SMOOTHINGS
from suite.spec.search_space import plan
from suite.spec.yaml_file import load_file

ROOT = Path(__file__).parents[1]
METHODS = (ROOT / "docs/methods.md").read_text()


@pytest.mark.parametrize(
    "block", re.findall(r"```yaml\n(.*?)```", METHODS, re.S), ids=lambda text: text.splitlines()[0]
)
def test_every_spec_on_the_page_is_valid(block, tmp_path):
    (tmp_path / "spec.yaml").write_text(block)
    assert plan(load_file(tmp_path / "spec.yaml")).trials()


def test_every_test_that_the_page_names_is_there():
    cited = re.findall(r"`(test_\w+\.py)::(test_\w+)`", METHODS)
    assert len(cited) > 15
    for file, name in cited:
        assert f"def {name}(" in (ROOT / "tests/suite" / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("axis", [OBJECTIVES, SMOOTHINGS, OPTIMIZERS, ADAPTERS], ids=lambda axis: axis.noun)
def test_every_method_has_a_line_on_the_page(axis):
    for name in axis:
        assert f"`{name}`" in METHODS, f"{axis.noun} {name}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    for name in re.findall(r"`((?:suite|leaderboard|tasks|tests|benchmarks|configs|docs)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_imports_from_the_project_can_be_imported(page):
    for block in re.findall(r"```py(?:thon)?\n(.*?)```", page.read_text(), re.S):
        imports = re.findall(r"^from (?:suite|leaderboard|tasks)[\w.]* import (?:\([^)]*\)|.*)$", block, re.M)
        exec("\n".join(imports), {})
