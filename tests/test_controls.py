"""What the docs claim of zeroth order and of the hybrid: each beside its control, as `controls.yaml` has them.

Trained from nothing, on test, with three of the six seeds: a quarter of an hour on two cores.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from leaderboard.ranking.compare import Comparison, compare
from suite.spec.search_space import plan
from suite.spec.yaml_file import load_file
from suite.storage.store import Store
from tests.support.command import regrade

SPEC = Path(__file__).parents[1] / "configs" / "sweeps" / "controls.yaml"
SEEDS = (0, 1, 2)


def entries(spec: Path) -> dict[str, str]:
    """The entry of each case of a sweep, by its name in these tests."""
    found = {}
    for one in plan(load_file(spec, ())).trials():
        settings = one.optimizer
        name = f"{settings.name} {one.steps}" if one.adapter.name == "lora" else settings.name
        if getattr(settings, "zo_lr", None) == 1e-12:
            name += " without zeroth order"
        if settings.lr == 4.5e-3:
            name += ", long"
        found.setdefault(name, one.entry)
    return found


def test_every_row_of_the_quickstart_is_in_it_with_the_same_settings():
    of_the_quickstart = {one.entry for one in plan(load_file(SPEC.with_name("grades.yaml"), ())).trials()}
    assert of_the_quickstart <= {one.entry for one in plan(load_file(SPEC, ())).trials()}
    assert len(of_the_quickstart) == 5


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store after the rows that are compared, and their entries."""
    folder = tmp_path_factory.mktemp("controls")
    settings = yaml.safe_load(SPEC.read_text())
    settings["search"]["cases"] = [case for case in settings["search"]["cases"] if "adapter" in case]
    settings["search"]["grid"]["seed"] = list(SEEDS)
    spec = folder / "controls.yaml"
    spec.write_text(yaml.safe_dump(settings))
    regrade("sweep", spec, "--runner", "ray", "--store", folder / "store")
    return folder / "store", entries(spec)


def compared(ran: tuple[Path, dict[str, str]], one: str, other: str) -> Comparison:
    store, entry = ran
    (found,) = compare(Store(store).board, "pocket", "test", [entry[one], entry[other]])
    assert len(found.seeds) == len(SEEDS)
    return found


def line(found: Comparison, name: str):
    return next(line for line in found.lines if line.name == name)


@pytest.mark.slow
def test_zeroth_order_forgets_and_keeps_what_its_control_does_not(ran):
    """10,000 loss values: F at least 0.7 at U at least 0.8, while random steps of the same length forget nothing."""
    found = compared(ran, "r_adazo 5000", "random_at_zo_norm 5000")
    forgetting, utility = line(found, "forgetting"), line(found, "utility")
    assert forgetting.one >= 0.7 and utility.one >= 0.8
    assert forgetting.difference.low > 0.4
    found = compared(ran, "r_adazo 5000", "random_at_zo_norm 1500, long")
    assert line(found, "forgetting").difference.low > 0 and line(found, "utility").difference.low > 0


@pytest.mark.slow
def test_a_hybrid_without_its_zeroth_order_steps_is_another_one(ran):
    """Over six runs the score and R differ; over three, what these runs say must not contradict it."""
    found = compared(ran, "hybrid 1000", "hybrid 1000 without zeroth order")
    for name in ("score", "robustness"):
        difference = line(found, name).difference
        assert difference.over_items[0] > 0, "on these runs"
        assert difference.high > 0
