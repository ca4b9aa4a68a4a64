"""A package that is installed beside Regrade adds a method of each kind; what it cannot add is left out and named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from leaderboard.board.store import Board
from tests.support.command import regrade

PACKAGE = Path(__file__).parents[1] / "support" / "example_package"
ROOT = Path(__file__).parents[2]

SPEC = """
task: capitals
model: {tiny: {hidden: 32, layers: 1, heads: 2, vocabulary: 512}}
anchors: {epochs: 8, lr: 1e-2}
objective: npo
optimizer: {name: normalised, lr: 1e-2}
steps: 3
batch_size: 2
measure: {match: null}
"""

CONFORMANCE = """
from regrade_example import CAPITALS, SHORTNESS, Fade, Normalised
from suite.testing import AttackConformance, MetricConformance, OptimizerConformance, TaskConformance


class TestNormalised(OptimizerConformance):
    entry = Normalised


class TestFade(AttackConformance):
    entry = Fade


class TestShortness(MetricConformance):
    entry = SHORTNESS


class TestCapitals(TaskConformance):
    entry = CAPITALS
"""


class Environment:
    """A fresh environment that sees this one's packages, Regrade's source, and what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "beside.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")

    def install(self, package: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", str(package)], check=True)

    def run(self, *arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def regrade(self, *arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "regrade", *arguments, cwd=cwd, code=code)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("plugins")
    made = Environment(folder / "environment")
    made.install(shutil.copytree(PACKAGE, folder / "package"))
    return made


@pytest.fixture(scope="module")
def store(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a trial of the package's task, optimizer, attack and metric."""
    folder = tmp_path_factory.mktemp("trial")
    (folder / "spec.yaml").write_text(SPEC)
    environment.regrade("run", "spec.yaml", "--store", "store", cwd=folder)
    return folder / "store"


def test_a_trial_runs_and_its_rows_name_the_package(store):
    (row,) = Board(store / "board").read("trials").to_pylist()
    assert row["status"] == "ok" and row["optimizer"] == "normalised" and row["grade"] == "first"
    assert json.loads(row["plugins"]) == {"optimizer": "regrade-example 0.1", "task": "regrade-example 0.1"}
    rows = Board(store / "board").read("measurements").to_pylist()
    faded = [r for r in rows if r["attack"] == "fade[share=0.1]" and r["metric"] == "shortness"]
    assert faded and all(json.loads(r["plugins"]).keys() == {"attack", "metric", "task"} for r in faded)
    plain = [r for r in rows if r["attack"] == "none" and r["metric"] == "probability"]
    assert plain and all(json.loads(r["plugins"]) == {"task": "regrade-example 0.1"} for r in plain)


def test_it_passes_the_conformance_tests(environment, tmp_path):
    (tmp_path / "test_mine.py").write_text(CONFORMANCE)
    said = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", cwd=tmp_path).stdout
    assert "failed" not in said and " passed" in said


def test_its_engine_answers_and_rows_say_whose_it_is(environment, store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "store")
    (tmp_path / "spec.yaml").write_text(SPEC)
    environment.regrade("run", "spec.yaml", "measure.engine=patient", "--store", copy, cwd=tmp_path)
    versions = {row["engine"]: row["engine_version"] for row in Board(copy / "board").read("measurements").to_pylist()}
    assert versions["patient-float32"] == f"{versions['transformers-float32']} (regrade-example 0.1)"


def test_it_is_listed(environment, tmp_path):
    listed = {"optimizers": "normalised", "attacks": "fade", "tasks": "capitals", "metrics": "shortness"}
    for axis, name in (listed | {"engines": "patient"}).items():
        entries = json.loads(environment.regrade("ls", axis, "--json", cwd=tmp_path).stdout)
        (entry,) = (one for one in entries if one["name"] == name)
        assert entry["package"] == "regrade-example 0.1"
    found = json.loads(environment.regrade("doctor", "--json", cwd=tmp_path).stdout)
    assert found["normalised"] == {"found": "regrade-example 0.1", "note": "optimizer of another package"}


def test_a_board_shows_rows_of_packages_that_are_not_installed(store):
    shown = json.loads(regrade("board", "show", "--store", store, "--json").stdout)
    (entry,) = shown[0]["entries"]
    assert shown[0]["task"] == "capitals" and entry["optimizer"] == "normalised"
    regrade("board", "page", "--store", store)
    regrade("report", store)
    assert "capitals is of regrade-example 0.1, which is not installed here" in regrade("report", store).stderr


def test_another_version_of_a_package_is_another_stage(environment, store, tmp_path):
    """The trial has the same id: a spec holds names only."""
    changed = shutil.copytree(PACKAGE, tmp_path / "package")
    project = changed / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "0.1"', 'version = "0.2"'))
    other = Environment(tmp_path / "environment")
    other.install(changed)
    copy = shutil.copytree(store, tmp_path / "store")
    (tmp_path / "spec.yaml").write_text(SPEC)
    other.regrade("run", "spec.yaml", "--store", copy, cwd=tmp_path)
    rows = Board(copy / "board").read("trials").to_pylist()
    assert len({row["trial"] for row in rows}) == 1
    assert len(list((copy / "stages" / "unlearn").glob("*.json"))) == 2


BROKEN = {
    "adam": ("broken:Fine", "Regrade itself has one of this name"),
    "exits": ("broken_exit:Fine", "cannot be imported (SystemExit: 3)"),
    "asks": ("broken:Asks", "which is not understood. Write it as `1 gradient`"),
    "gradeless": ("broken:Gradeless", "lacks the class attribute `grade`"),
    "absent": ("broken.nowhere:Fine", "cannot be imported (ModuleNotFoundError"),
    "lacking": ("broken:Nothing", "cannot be imported (AttributeError"),
    "a_function": ("broken:function", "is no subclass of suite.optimizers.base.Optimizer"),
    "another_name": ("broken:Named", "its entry point must have its name, named"),
    "nameless": ("broken:Nameless", "has no `Settings`"),
    "any_name": ("broken:AnyName", "has no name: write `name: Literal[...]"),
}
MODULE = '''
from typing import Literal
from suite.config.settings import Settings
from suite.engines import TransformersEngine
from suite.optimizers import Optimizer, OptimizerSettings
from suite.oracle.base import Grade
def function(): ...
class Whole(Optimizer["Whole.Settings"]):
    grade, source, queries_per_step = Grade.FIRST, "", "1 gradient"
class Fine(Whole):
    """A second Adam."""
    class Settings(OptimizerSettings):
        name: Literal["adam"] = "adam"
class Asks(Whole):
    """One that asks nobody knows what."""
    queries_per_step = "1 gradient + 1 curvature every k"
    class Settings(OptimizerSettings):
        name: Literal["asks"] = "asks"
class Gradeless(Optimizer["Gradeless.Settings"]):
    """One without a grade."""
    source, queries_per_step = "", "1 gradient"
    class Settings(OptimizerSettings):
        name: Literal["gradeless"] = "gradeless"
class Engine(TransformersEngine):
    """An engine whose settings would hide those of the attacks."""
    class Settings(Settings):
        name: Literal["attacks"] = "attacks"
        more: int = 1
class Named(Whole):
    """One with a name."""
    class Settings(OptimizerSettings):
        name: Literal["named"] = "named"
class AnyName(Whole):
    """One whose name is any text."""
    class Settings(OptimizerSettings):
        name: str = "any_name"
class Nameless(Optimizer["Nameless.Settings"]):
    """One without settings."""
    grade, source, queries_per_step = Grade.FIRST, "", "1 gradient"
'''


def test_what_cannot_be_added_is_left_out_and_named(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    points = "\n".join(f'{name} = "{value}"' for name, (value, _) in BROKEN.items())
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "broken"\nversion = "3"\n[tool.setuptools]\npy-modules = ["broken", "broken_exit"]\n'
        f'[project.entry-points."regrade.optimizers"]\n{points}\n'
        '[project.entry-points."regrade.engines"]\nattacks = "broken:Engine"\n'
    )
    (package / "broken_exit.py").write_text("raise SystemExit(3)")
    (package / "broken.py").write_text(MODULE)
    environment = Environment(tmp_path / "environment")
    environment.install(package)
    listed = environment.regrade("ls", "optimizers", "--json", cwd=tmp_path)
    known = [one["name"] for one in json.loads(listed.stdout)]
    assert len(listed.stderr.splitlines()) == len(BROKEN)
    ours = [one["name"] for one in json.loads(regrade("ls", "optimizers", "--json").stdout)]
    assert known == ours
    (tmp_path / "spec.yaml").write_text(SPEC.replace("capitals", "pocket").replace("normalised", "sgd"))
    environment.regrade("validate", "spec.yaml", cwd=tmp_path)
    found = environment.regrade("doctor", "--json", cwd=tmp_path).stdout
    for name in (*BROKEN, "attacks"):
        assert f"{name} of broken 3 is left out" in found
    for name, (_, why) in BROKEN.items():
        said = environment.run(
            "-c",
            f"from suite.optimizers import OPTIMIZERS; print(OPTIMIZERS.problems({name!r})[0])",
            cwd=tmp_path,
        ).stdout
        assert said.startswith(f"optimizer {name} of broken 3 is left out: ") and why in said
        if name not in ours:
            error = environment.regrade("validate", "spec.yaml", f"optimizer.name={name}", cwd=tmp_path, code=2).stderr
            assert f"optimizer {name} of broken 3 is left out" in " ".join(error.split())


def test_a_registry_refuses_a_second_entry_of_one_name():
    from suite.config.registry import Registry
    from suite.optimizers.first_order import SGD, Adam

    with pytest.raises(ValueError, match="two optimizers have the name adam"):
        Registry("optimizer", [Adam, SGD, Adam])
