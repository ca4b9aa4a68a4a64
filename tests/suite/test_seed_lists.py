"""Several seeds of attacks and of anchors: what is computed, what is used again, and which lists are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.board.schema import columns
from suite.attacks import attack
from suite.config.errors import SpecError
from suite.config.settings import parse
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec, trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.trials.preflight import cost
from suite.trials.run import TrialResult, run_trial
from tasks import TASKS, Split
from tests.support.command import regrade
from tests.support.small import SMALL

RTN = {"name": "rtn", "bits": 4}
RELEARN = {"name": "relearn", "samples": 4, "steps": 2, "lr": 1e-3, "points": 2, "seed": 1}
KNOWS = merged(SMALL, {"anchors": {"epochs": 30, "retain_limit": 32}})
"""So many epochs that the anchors differ in what they know."""
ROW = [name for name in columns("measurements") if name not in ("written_at", "host", "code", "source")]
WRONG: list[tuple[object, str]] = [
    ([], "at least"),
    ([1, 1], "1 is there twice. Keep one of them"),
    ([0, 1, 0], "0 is there twice. Keep one of them"),
    ([-1], "at least 0"),
    ([0, -1], "at least 0"),
    (list(range(101)), "at most 100"),
    ([True], "whole number"),
    ([0, False], "whole number"),
    ([0.0], "whole number"),
    ([0, 1.5], "whole number"),
    (["0"], "whole number"),
    ([None], "whole number"),
    ([[0]], "whole number"),
    ([2**32], "less than 4,294,967,296"),
    ([10**400], "too large"),
    ({"a": 1}, "expected"),
    ("0,1", "expected"),
    (True, "expected"),
    (1.0, "expected"),
]


def measure(**changes: Any) -> MeasureSpec:
    few = {"attacks": [RTN, RELEARN], "limit": 8, "splits": ["test"], "match": None}
    return parse(MeasureSpec, {**few, **changes}, "measure.")


def names(of: MeasureSpec) -> list[str]:
    return [one.name for one in of.attacks_for("pocket", Split.TEST)]


def seeded(seed: int) -> str:
    return attack({**RELEARN, "seed": seed}).name


def by_key(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Any]]:
    return {tuple(row[name] for name in ROW[:10]): [row[name] for name in ROW] for row in rows}


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one trial, measured as ever."""
    root = tmp_path_factory.mktemp("knowing") / "store"
    run_trial(trial(KNOWS), Store(root), measure=measure())
    return root


@pytest.fixture
def store(knowing: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(knowing, tmp_path / "store"))


# Attack seeds.


def test_attacks_that_draw_at_random_are_carried_out_once_with_each_seed():
    assert names(measure()) == ["none", "rtn[bits=4]", seeded(1)]
    assert names(measure(attack_seeds=[2, 0, 1])) == ["none", "rtn[bits=4]", seeded(2), seeded(0), seeded(1)]
    assert names(measure(attack_seeds=[7])) == ["none", "rtn[bits=4]", seeded(7)]
    assert names(measure(attack_seeds=None)) == names(measure())
    assert "attack_seeds" not in measure().changed()


@pytest.mark.parametrize(
    ("settings", "random"),
    [
        ({"name": "none"}, False),
        (RTN, False),
        ({"name": "nf4"}, False),
        ({"name": "prune", "by": "magnitude", "sparsity": 0.5}, False),
        ({"name": "prune", "by": "wanda", "sparsity": 0.5}, True),
        ({"name": "prune", "by": "wanda", "sparsity": 0.0}, False),
        ({"name": "gptq", "bits": 4}, True),
        ({"name": "noise", "sigma": 0.1}, True),
        ({"name": "noise", "sigma": 0.0}, False),
        (RELEARN, True),
        ({"name": "relearn", "samples": 4, "steps": 0, "lr": 1e-3}, False),
        ({"name": "paraphrase"}, False),
        ({"name": "few_shot", "shots": 2}, False),
        ({"name": "multiple_choice"}, True),
        ({"name": "sample", "draws": 2}, True),
        ({"name": "sample", "draws": 2, "temperature": 0.0}, False),
        ({"name": "gcg", "steps": 2}, True),
        ({"name": "gcg", "steps": 0}, False),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_an_attack_is_random_where_its_seed_changes_it(settings, random):
    one = attack(settings)
    assert one.random is random
    many = names(measure(attacks=[settings], attack_seeds=[3, 4]))
    own = [name for name in many if name != "none"]
    assert len(own) == (0 if settings["name"] == "none" else 2 if random else 1)
    if random:
        assert own == [attack({**settings, "seed": seed}).name for seed in (3, 4)]


def test_every_official_attack_takes_further_seeds():
    for task, kind in ((task, kind) for task, kind in TASKS.items() if kind.attack_sets):
        for name in kind.attack_sets:
            for split in Split:
                own = measure(attacks=name, splits=[str(split)]).attacks_for(task, split)
                many = measure(attacks=name, splits=[str(split)], attack_seeds=[0, 1, 2]).attacks_for(task, split)
                assert {one.name for one in many if not one.random} == {one.name for one in own if not one.random}
                assert sum(one.random for one in many) == 3 * sum(one.random for one in own)


def test_a_cost_counts_every_seed_and_every_pair():
    task = TASKS["pocket"].build()
    once = cost(trial(SMALL), task, measure()).evaluations
    assert once == 3 * (1 + 1 + 2)
    assert cost(trial(SMALL), task, measure(attack_seeds=[0, 1, 2])).evaluations == 3 * (1 + 1 + 3 * 2)
    two = trial(merged(SMALL, {"anchors": {"seed": [0, 1]}}))
    assert cost(two, task, measure()).evaluations == 5 * (1 + 1 + 2)


def test_the_stages_and_rows_of_an_attack_s_own_seed_are_used_again(store: Store):
    before = by_key(store.board.read("measurements").to_pylist())
    result = run_trial(trial(KNOWS), store, measure=measure(attack_seeds=[0, 1]))
    assert {kind: len(keys) for kind, keys in store.stages.computed.items()} == {"samples": 3 * 2}
    after = by_key(store.board.read("measurements").to_pylist())
    assert before.items() <= after.items()
    assert {key[2] for key in after.keys() - before.keys()} == {seeded(0)}
    assert {row["subject"] for row in result.measurements} == {"target", "retrained", "unlearned"}
    items = store.board.read("items").to_pylist()
    named = {row["samples"] for row in result.measurements if row["headline"] == "knowledge"}
    assert named <= {row["samples"] for row in items}
    again = Store(store.root)
    repeated = run_trial(trial(KNOWS), again, measure=measure(attack_seeds=[0, 1]))
    assert not again.stages.computed
    assert by_key(repeated.measurements) == by_key(result.measurements)


def test_a_trial_s_headlines_are_means_over_attack_seeds(store: Store):
    result = run_trial(trial(KNOWS), store, measure=measure(attack_seeds=[0, 1, 2]))
    recovery = result.headlines(Split.TEST).recovery
    assert set(recovery) == {"none", "rtn[bits=4]", seeded(1)}
    assert recovery[seeded(1)].value == pytest.approx(by_hand(result, (0, 1, 2)))
    assert result.attacks[Split.TEST] == ["none", "rtn[bits=4]", seeded(1)]
    own = run_trial(trial(KNOWS), Store(store.root), measure=measure())
    assert own.headlines(Split.TEST).recovery[seeded(1)].value == pytest.approx(by_hand(own, (1,)))


def by_hand(result: TrialResult, seeds: tuple[int, ...], pairs: int = 1) -> float:
    """The largest excess recovery under the random attack, from rows."""
    found: dict[tuple[str, str, str, int], list[float]] = {}
    for row in result.measurements:
        if row["headline"] == "knowledge":
            found.setdefault((row["subject"], row["probe"], row["attack"], row["point"]), []).append(row["value"])

    def mean(subject: str, probe: str, attacks: tuple[str, ...], point: int) -> float:
        values = [value for attack in attacks for value in found[subject, probe, attack, point]]
        assert len(values) == len(attacks) * (1 if subject == "unlearned" else pairs)
        return float(np.mean(values))

    under, probes = tuple(map(seeded, seeds)), {probe for _, probe, _, _ in found}
    shares = [
        (mean("unlearned", probe, under, point) - mean("retrained", probe, under, point))
        / (mean("target", probe, ("none",), 0) - mean("retrained", probe, ("none",), 0))
        for probe in probes
        for point in (1, 2)
    ]
    return max(shares)


@pytest.mark.parametrize(("seeds", "why"), [pair for pair in WRONG if not isinstance(pair[0], int | float)])
def test_wrong_attack_seeds_are_refused_in_a_sentence(seeds, why):
    with pytest.raises(SpecError) as error:
        measure(attack_seeds=seeds)
    assert str(error.value).startswith("measure.attack_seeds")
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [3, 0, -1, True, 1.5])
def test_attack_seeds_are_a_list(seed):
    with pytest.raises(SpecError, match=r"^measure\.attack_seeds: a list is expected, not "):
        measure(attack_seeds=seed)


# Anchor seeds.


def with_seed(seed: object) -> TrialSpec:
    return trial(merged(SMALL, {"anchors": {"seed": seed}}))


def test_one_seed_is_the_same_trial_in_a_list_or_not():
    assert with_seed([3]).id == with_seed(3).id != trial(SMALL).id
    assert with_seed([0]).id == with_seed(0).id == trial(SMALL).id
    assert trial(SMALL).canonical["anchors"] == SMALL["anchors"]
    two = with_seed([0, 1])
    assert two.canonical["anchors"]["seed"] == [0, 1]
    assert trial(two.canonical).id == two.id != with_seed([1, 0]).id
    assert two.entry == trial(two.canonical | {"seed": 5}).entry
    assert [one.seed for one in two.anchors.pairs] == [0, 1]
    assert two.anchors.pairs[0] == trial(SMALL).anchors


@pytest.mark.parametrize(("seeds", "why"), WRONG)
def test_wrong_anchor_seeds_are_refused_in_a_sentence(seeds, why):
    with pytest.raises(SpecError) as error:
        with_seed(seeds)
    assert str(error.value).startswith("anchors.seed")
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("anchors", [{"source": "pretrained"}, {"source": "published"}, {"target": "/models/a"}])
def test_given_anchors_have_one_seed(anchors):
    plain = {key: value for key, value in SMALL.items() if key != "anchors"}
    with pytest.raises(SpecError, match=r"^anchors\.seed: several seeds are of anchors that are trained here"):
        trial({**plain, "anchors": anchors | {"seed": [0, 1]}})


def test_further_anchors_have_rows_of_their_own_and_the_first_target_is_unlearned(store: Store):
    one = run_trial(trial(KNOWS), Store(store.root), measure=measure())
    spec = trial(merged(KNOWS, {"anchors": {"seed": [0, 1]}}))
    result = run_trial(spec, store, measure=measure(attack_seeds=[0, 1]))
    computed = {kind: len(keys) for kind, keys in store.stages.computed.items()}
    # Of the first pair and the unlearned model nothing but the attack with a further seed; of the second everything.
    assert computed == {"base": 1, "target": 1, "retrained": 1, "samples": 3 * 2 + 2 * (1 + 1 + 2 * 2)}
    assert result.row["weights"] == one.row["weights"]
    first, second = result.row["anchors"].split(",")
    assert first == one.row["anchors"]
    targets, zeros = (part.split(",") for part in result.row["anchor_ids"].split(":"))
    assert f"{targets[0]}:{zeros[0]}" == one.row["anchor_ids"]
    assert len({*targets, *zeros}) == 4
    ids = {(row["subject"], row["trial"]) for row in result.measurements}
    anchors = {(anchor, pair) for anchor in ("target", "retrained") for pair in (first, second)}
    assert ids == anchors | {("unlearned", spec.id)}
    # What the pairs are measured by belongs to each alone, so trials with that seed alone find it.
    before = by_key(row for row in one.measurements if row["subject"] != "unlearned")
    assert before.items() <= by_key(result.measurements).items()
    alone = Store(store.root)
    run_trial(trial(merged(KNOWS, {"anchors": {"seed": 1}})), alone, measure=measure(attack_seeds=[0, 1]))
    assert {kind: len(keys) for kind, keys in alone.stages.computed.items()} == {"unlearn": 1, "samples": 1 + 1 + 2 * 2}
    recovery = result.headlines(Split.TEST).recovery[seeded(1)]
    assert recovery.value == pytest.approx(by_hand(result, (0, 1), pairs=2))
    assert recovery.value is not None
    assert math.isfinite(recovery.value)


def test_the_command_runs_several_seeds_and_says_what_is_wrong(tmp_path: Path, warm_store: Path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({**SMALL, "measure": {"attacks": [RTN, RELEARN], "limit": 4, "match": None}}))
    lists = ["measure.attack_seeds=[0,1]", "anchors.seed=[0,1]"]
    told = json.loads(regrade("validate", spec, *lists, "--json").stdout)
    assert told["trials"][0]["cost"]["evaluations"] == 5 * (1 + 1 + 2 * 2)
    assert told["trials"][0]["spec"]["anchors"]["seed"] == [0, 1]
    store = shutil.copytree(warm_store, tmp_path / "store")
    outcome = json.loads(regrade("run", spec, *lists, "--store", store, "--json").stdout)
    assert outcome["status"] == "ok"
    shown = json.loads(regrade("board", "show", "--store", store, "--json").stdout)
    assert shown
    for wrong in ("measure.attack_seeds=[0,0]", "anchors.seed=[0,0]", "measure.attack_seeds=[]", "anchors.seed=[]"):
        said = regrade("validate", spec, wrong, code=2).stderr
        assert wrong.partition("=")[0] in said
        assert "Traceback" not in said


def test_the_list_of_attacks_says_which_take_seeds():
    listed = {row["name"]: row["seeds"] for row in json.loads(regrade("ls", "attacks", "--json").stdout)}
    assert listed["relearn"]
    assert listed["noise"]
    assert not listed["rtn"]
    assert not listed["none"]
