"""Null trials: which follow from a sweep, how large their changes are, and that no board prefers one to retraining."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from leaderboard.board.schema import RANDOM_CHANGE
from leaderboard.board.store import Board
from leaderboard.ranking.null_entries import null_text
from leaderboard.ranking.rank import rank
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.models.checkpoints import SavedCheckpoint
from suite.models.loading import save
from suite.runners.null_trials import MOST_SEEDS, random_changes, rounded_norm
from suite.spec.measure import MeasureSpec
from suite.spec.random_change import RandomChange, any_trial
from suite.spec.trial import TrialSpec, trial
from suite.storage.store import Store
from suite.training.anchors import Anchors, prepare_anchors
from suite.training.random_change import CLOSE, randomly_changed
from suite.trials.run import run_trial
from tasks import TASKS
from tests.support.command import regrade
from tests.support.small import SMALL


def specs(seeds: int, **changes: Any) -> list[TrialSpec]:
    return [trial({**SMALL, **changes, "seed": seed}) for seed in range(seeds)]


def norms_of(trials: list[TrialSpec], norm: float) -> dict[str, float]:
    return {spec.id: norm for spec in trials}


@pytest.mark.parametrize(("trials", "nulls"), [(1, 0), (4, 0), (5, 1), (9, 1), (10, 2), (15, 3), (40, 3)])
def test_by_default_null_trials_cost_a_fifth_of_a_sweep_at_most(trials: int, nulls: int):
    some = specs(trials)
    found = random_changes(some, norms_of(some, 1.0), False, trials)
    assert [one.seed for one in found] == list(range(nulls))
    wanted = random_changes(some, norms_of(some, 1.0), True, trials)
    assert len(wanted) == min(trials, MOST_SEEDS)


def test_null_trials_belong_to_anchors_and_to_what_could_change():
    groups = [
        specs(2),
        specs(2, anchors={"epochs": 2, "lr": 3e-3}),
        specs(2, trainable=["*norm*"]),
        specs(2, adapter={"name": "lora"}),
        specs(2, objective={"name": "graddiff"}, steps=2),
    ]
    norms = {spec.id: float(4**place) for place, group in enumerate(groups) for spec in group}
    found = random_changes([spec for group in groups for spec in group], norms, True, 10)
    told = {(one.anchors.epochs, one.trainable, one.seed): one.random_change for one in found}
    # The first group is also that of the adapter and of the other objective: its median is over all of them.
    assert told == {
        **{(1, ("*",), seed): 64.0 for seed in (0, 1)},
        **{(2, ("*",), seed): 4.0 for seed in (0, 1)},
        **{(1, ("*norm*",), seed): 16.0 for seed in (0, 1)},
    }
    assert len({one.entry for one in found}) == 3 and len({one.id for one in found}) == 6
    assert random_changes(groups[0], {}, True, 2) == []  # nothing was measured


def test_a_norm_is_rounded_so_that_it_seldom_moves():
    draw = random.Random(0)
    for _ in range(1000):
        norm = 10 ** draw.uniform(-9, 9)
        assert abs(rounded_norm(norm) / norm - 1) < 0.1
        assert rounded_norm(rounded_norm(norm)) == rounded_norm(norm)
    assert len({rounded_norm(1 + step / 1000) for step in range(1000)}) == 5  # 1, 1.19, 1.41, 1.68, 2


def test_a_null_trial_survives_being_written_down():
    for model, anchors in (({}, {"epochs": 1, "lr": 3e-3}), ({"name": "x"}, {"target": "x", "retrained": "y"})):
        one = RandomChange.model_validate_json(
            json.dumps({"task": "pocket", "model": model, "anchors": anchors, "random_change": 1.19, "seed": 2})
        )
        again = any_trial(json.loads(json.dumps(one.canonical)))
        assert (again, again.id, again.entry) == (one, one.id, one.entry)
        other = any_trial({**one.canonical, "seed": 0})
        assert other.id != one.id and other.entry == one.entry
    assert any_trial(trial(SMALL).canonical) == trial(SMALL)
    with pytest.raises(SpecError, match="random_change"):
        trial({**SMALL, "random_change": 1.0})


@pytest.fixture
def store(warm_store: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(warm_store, tmp_path / "store"))


@pytest.fixture
def anchors(store: Store) -> Anchors:
    return prepare_anchors(trial(SMALL), TASKS["pocket"].build(), store.stages, RuntimeSpec())


def null(norm: float, **changes: Any) -> RandomChange:
    shared = {key: SMALL[key] for key in ("task", "model", "anchors")}
    return any_trial({**shared, RANDOM_CHANGE: norm, **changes})


def changes_of(spec: RandomChange, anchors: Anchors, store: Store) -> tuple[float, dict[str, torch.Tensor]]:
    """The norm that the stage names, and the change of each parameter, in double precision."""
    stage = randomly_changed(spec, anchors, store.stages, RuntimeSpec())
    after = SavedCheckpoint(stage.folder / "final").model()
    before = dict(anchors.checkpoint("target").model().named_parameters())
    return stage.meta["change_norm"], {
        name: (parameter.detach().double() - before[name].detach().double())
        for name, parameter in after.named_parameters()
    }


def length(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(one.square().sum()) for one in tensors.values()) ** 0.5


def test_a_change_has_the_norm_that_was_asked_for_and_a_direction_of_its_own(anchors: Anchors, store: Store):
    told, change = changes_of(null(1.19), anchors, store)
    assert told == pytest.approx(1.19, rel=1e-4) and length(change) == pytest.approx(1.19, rel=1e-4)
    assert all(bool(one.abs().min() > 0) or one.numel() > 1000 for one in change.values())
    # Gaussian and the same everywhere: every tensor's share of the square is its share of the parameters.
    total = sum(one.numel() for one in change.values())
    for one in change.values():
        share, error = one.numel() / total, (2 / one.numel()) ** 0.5
        assert float(one.square().sum()) / 1.19**2 == pytest.approx(share, rel=6 * error)
    _, longer = changes_of(null(2.38), anchors, store)
    _, other = changes_of(null(1.19, seed=1), anchors, store)
    name = max(change, key=lambda name: change[name].numel())
    assert torch.allclose(longer[name], 2 * change[name], atol=1e-6)  # the same direction
    cosine = torch.nn.functional.cosine_similarity(change[name].flatten(), other[name].flatten(), dim=0)
    assert abs(float(cosine)) < 6 / change[name].numel() ** 0.5


def test_only_what_could_change_is_changed(anchors: Anchors, store: Store):
    _, change = changes_of(null(0.5, trainable=["*norm*"]), anchors, store)
    moved = {name for name, one in change.items() if bool(one.any())}
    assert moved == {name for name in change if "norm" in name} and 0 < len(moved) < len(change)
    assert length(change) == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(SpecError, match="matches no parameter"):
        changes_of(null(0.5, trainable=["nothing"]), anchors, store)


@pytest.mark.parametrize("norm", [1e-3, 0.03, 1.0, 30.0])
def test_a_change_is_as_long_after_rounding_to_few_bits(anchors: Anchors, store: Store, tmp_path: Path, norm: float):
    """Most of a small change is lost in bfloat16, and what is not is too long: still its norm is the one asked for."""
    model = anchors.checkpoint("target").model().bfloat16()
    save(model, anchors.base.encoder.tokenizer, tmp_path / "bf16")
    target = replace(anchors.target, checkpoint=SavedCheckpoint(tmp_path / "bf16"), key="bf16")
    told, change = changes_of(null(norm), replace(anchors, target=target), store)
    assert told == pytest.approx(norm, rel=1.1 * CLOSE) and length(change) == pytest.approx(told)


def sweep_file(path: Path, **measure: Any) -> Path:
    grid = {"optimizer.name": ["adam", "sgd", "sign_adam", "hybrid", "zo_sgd"], "seed": [3]}
    file = path / "sweep.yaml"
    settings = {"attacks": [{"name": "rtn", "bits": 4}], "limit": 3, "splits": ["dev", "test"], **measure}
    file.write_text(yaml.safe_dump({**SMALL, "measure": settings, "search": {"grid": grid}}))
    return file


def test_a_sweep_ends_with_its_null_trials_and_computes_nothing_twice(store: Store, tmp_path: Path):
    file = sweep_file(tmp_path)
    said = json.loads(regrade("sweep", file, "--store", store.root, "--json").stdout)
    assert len(said["trials"]) == 5
    [one] = said["null_trials"]
    assert one["status"] == "ok" and one["label"].startswith("random change of norm ") and one["computed"]
    rows = {row["trial"]: row for row in store.board.read("trials").to_pylist()}
    assert len(rows) == 6
    row = rows[one["trial"]]
    beside = rows[said["trials"][0]["trial"]]
    assert (row["optimizer"], row["objective"], row["grade"], row["steps_done"]) == (RANDOM_CHANGE, None, None, 0)
    assert (row["seed"], row["search"], row["value_calls"], row["gradient_calls"]) == (3, None, 0, 0)
    for name in ("task", "task_version", "data", "anchors", "anchor_ids", "template", "model", "dtype"):
        assert row[name] == beside[name] is not None
    middle = sorted(other["change_norm"] for other in rows.values() if other is not row)[2]
    assert row["change_norm"] == pytest.approx(middle, rel=0.1)
    # It was measured as the trials were.
    asked = ("subject", "attack", "point", "probe", "metric", "split", "matching")
    measured = {
        id_: {tuple(m[name] for name in asked) for m in store.board.read("measurements", {"trial": id_}).to_pylist()}
        for id_ in (row["trial"], beside["trial"])
    }
    raw = [{key for key in found if key[-1] == "raw"} for found in measured.values()]
    assert raw[0] == raw[1] and len(raw[0]) > 10
    again = regrade("sweep", file, "--store", store.root).stdout
    assert again.startswith("5 trials and 1 null trial: no stage computed")
    ranking = rank(store.board, "pocket")
    assert len(ranking.entries) == 5 and ranking.group.trials == 5 and ranking.unmeasured == 0
    assert all(entry.optimizer != RANDOM_CHANGE for entry in ranking.entries)


def test_a_sweep_makes_as_many_null_trials_as_it_is_told(store: Store, tmp_path: Path):
    none = sweep_file(tmp_path, nulls=False)
    assert json.loads(regrade("sweep", none, "--store", store.root, "--json").stdout)["null_trials"] == []
    words = ("sweep", none, "--store", store.root, "--json", "--grid", "seed=0,1", "--grid", "optimizer.name=adam")
    assert json.loads(regrade(*words).stdout)["null_trials"] == []
    two = json.loads(regrade(*words, "measure.nulls=true").stdout)["null_trials"]
    assert [one["status"] for one in two] == ["ok", "ok"]


def test_a_run_makes_a_null_trial_only_when_it_is_told(store: Store, tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "measure": {"attacks": [], "limit": 3}}))
    assert json.loads(regrade("run", file, "--store", store.root, "--json").stdout)["null_trials"] == []
    words = ("run", file, "measure.nulls=true", "--store", store.root)
    [one] = json.loads(regrade(*words, "--json").stdout)["null_trials"]
    assert one["status"] == "ok"
    assert " and a null trial: no stage computed" in regrade(*words).stdout
    for wrong in ("3", "maybe", "[true]"):
        assert "measure.nulls" in regrade("run", file, f"measure.nulls={wrong}", "--store", store.root, code=2).stderr


def test_null_trials_are_said_beforehand(tmp_path: Path):
    file = sweep_file(tmp_path)
    assert "\n1 null trial follows: " in regrade("validate", file).stdout
    assert json.loads(regrade("validate", file, "search.grid.seed=[0,1,2]", "--json").stdout)["null_trials"] == 3
    assert "null trial" not in regrade("validate", file, "measure.nulls=false").stdout


def test_trials_that_changed_nothing_have_no_null_trial(store: Store, tmp_path: Path):
    file = tmp_path / "run.yaml"
    still = {**SMALL, "optimizer": {"name": "sgd", "lr": 1e-30}, "measure": {"attacks": [], "limit": 3, "nulls": True}}
    file.write_text(yaml.safe_dump(still))
    said = json.loads(regrade("run", file, "--store", store.root, "--json").stdout)
    assert (said["status"], said["null_trials"]) == ("unchanged", [])


@pytest.mark.slow
def test_no_null_entry_is_above_the_retrained_model(tmp_path: Path):
    """On the bundled task: from a change that does nothing to one that leaves nothing."""
    store = Store(tmp_path / "store")
    real = {**SMALL, "model": {}, "anchors": {"epochs": 9, "lr": 3e-3, "retain_repeats": 2}, "optimizer": "adam"}
    one = trial({**real, "optimizer": {"name": "adam", "lr": 1e-3}, "steps": 5})
    measure = MeasureSpec(attacks="pocket-1", match=None)
    run_trial(one, store, measure=measure)
    shared = {key: one.canonical[key] for key in ("task", "anchors")}
    for norm in (4.0, 16.0, 32.0, 64.0):
        for seed in (0, 1):
            run_trial(any_trial({**shared, RANDOM_CHANGE: norm, "seed": seed}), store, measure=measure)
    ranking = rank(Board(store.root / "board"), "pocket", attack_set="pocket-1")
    found = {entry.name: entry for entry in ranking.null_entries}
    assert len(found) == 8 and {"target", "retrained", "refuses everything", "random change of norm 64"} <= found.keys()
    forgotten = [found[f"random change of norm {norm}"].forgetting.value for norm in (4, 16, 32, 64)]
    assert forgotten == sorted(forgotten) and forgotten[0] < 0.1 < 0.5 < forgotten[-1], forgotten
    for entry in found.values():
        assert entry.score.value <= found["retrained"].score.value, null_text(entry)
