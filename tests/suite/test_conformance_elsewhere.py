"""The conformance classes in the hands of somebody else: a package of its own, and sentences about what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from suite.optimizers import Optimizer
from suite.testing import Case, OptimizerConformance
from tests.support import methods_elsewhere

ROOT = Path(__file__).parents[2]
RIGHT = {
    "Optimizer": "Normalised",
    "Objective": "Margin",
    "Smoothing": "Halved",
    "Adapter": "Thin",
    "Attack": "Polite",
    "Metric": "SHORTNESS",
    "Task": "TASK",
}
WRONG = [
    ("Optimizer", "Miscounted", "queries_per_step_is_what_is_counted", "says `2 gradient`, which is .* Correct"),
    ("Optimizer", "Misgraded", "its_grade_is_that_of_its_queries", "that is the grade first"),
    ("Optimizer", "InPlace", "probing_leaves_the_weights_untouched[normalised-bf16]", "with a `Displacement`"),
    ("Optimizer", "Forgetful", "a_run_goes_on_from_its_state_bit_for_bit[normalised-fp32-moved]", "look at mean"),
    ("Optimizer", "Uphill", "the_loss_goes_down", "is it that of the gradient"),
    ("Optimizer", "Unexampled", "its_example_is_settings_of_it", "momentun: unknown key.*`example`, a class attribute"),
    ("Objective", "Stopped", "values_gradient_and_forward_derivative_are_those_of_one_function", "leave out `detach`"),
    ("Objective", "Undeclared", "it_reads_no_more_of_a_batch_than_it_declares", "Set .*`uses_forget_refusals`"),
    ("Smoothing", "Everything", "queries_that_it_does_not_change_are_answered_by_the_oracle_inside", "passed on"),
    ("Smoothing", "Unstepped", "the_grade_stays_that_of_the_optimizer", r"call `super\(\).stepped\(\)`"),
    ("Adapter", "Shifted", "a_fresh_adapter_leaves_the_model_unchanged[thin-fp32]", "adds exactly zero"),
    ("Attack", "Zeroing", "the_subject_itself_is_never_touched", "in place. Return new tensors"),
    ("Attack", "Drawn", "random_says_whether_the_outcome_depends_on_the_seed", "override `random`"),
    ("Metric", "WRONG_WAY", "up_says_which_way_knowledge_goes", "`up` is False"),
    ("Task", "NAMELESS", "it_has_a_name_a_summary_and_a_version", "the entry is 'nameless'"),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict[str, str]:
    """What a run of pytest in a folder far from the repository's tests says of each test: its failure, or no text."""
    home, packages = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("packages")
    for package in ("suite", "tasks", "leaderboard"):
        (packages / package).symlink_to(ROOT / package)
    (home / "elsewhere").mkdir()
    shutil.copy(methods_elsewhere.__file__, home / "elsewhere" / "__init__.py")
    axes = {name: axis for axis, name in RIGHT.items()} | {name: axis for axis, name, *_ in WRONG}
    classes = (f"class Test{name}({axis}Conformance):\n    entry = elsewhere.{name}\n" for name, axis in axes.items())
    (home / "test_mine.py").write_text("import elsewhere\nfrom suite.testing import *\n" + "".join(classes))
    chosen = [f"test_mine.py::Test{name}" for name in RIGHT.values()]
    chosen += [f"test_mine.py::Test{name}::test_{test}" for _, name, test, _ in WRONG]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml", *chosen]
    environment = {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{packages}"}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, str] = {}
    for case in ElementTree.parse(home / "out.xml").iter("testcase"):
        words = [str(each.get("message")) for each in case if each.tag in ("failure", "error")]
        found[f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}"] = " ".join(words)
    return found


@pytest.mark.parametrize("name", RIGHT.values())
def test_a_method_of_another_package_passes(outcome, name):
    ran = {test: words for test, words in outcome.items() if test.startswith(f"Test{name}::")}
    assert len(ran) >= 8
    assert not any(ran.values()), ran


@pytest.mark.parametrize(("axis", "name", "test", "says"), WRONG, ids=[f"{axis}-{name}" for axis, name, *_ in WRONG])
def test_what_is_wrong_is_said_in_words(outcome, axis, name, test, says):
    (words,) = (words for ran, words in outcome.items() if ran.startswith(f"Test{name}::test_{test}"))
    assert re.search(says, words.replace("\n", " ")), words


def test_a_class_of_tests_says_what_it_lacks():
    class Nothing(OptimizerConformance):
        pass

    class Other(OptimizerConformance):
        entry = methods_elsewhere.Margin

    class Bare(OptimizerConformance):
        entry = type("Unset", (Optimizer,), {})

    for kind, says in ((Nothing, "Write `entry = "), (Other, "no subclass of suite.optimizers"), (Bare, "`Settings`")):
        with pytest.raises(pytest.Collector.CollectError, match=says):
            kind().pytest_generate_tests(None)


def test_a_notation_that_is_not_understood_is_said_in_words():
    odd = Case(type("Odd", (methods_elsewhere.Normalised,), {"queries_per_step": "one gradient"}))
    with pytest.raises(AssertionError, match=r"Odd\.queries_per_step: `one gradient` is not understood .* Write it"):
        OptimizerConformance().test_queries_per_step_is_what_is_counted(odd)
