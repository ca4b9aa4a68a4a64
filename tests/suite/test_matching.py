"""Retention matching against weights that were mixed by hand, and what happens to a trial when an attack fails."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import yaml

from leaderboard.board import schema
from leaderboard.board.schema import ANCHORS
from leaderboard.board.store import Board
from leaderboard.ranking.headlines import HeadlineMeasurements, headlines
from leaderboard.ranking.measured import TaskMeasurements
from leaderboard.ranking.rank import FLOOR, rank
from leaderboard.ranking.retention_matching import curve_name, share_of
from leaderboard.ranking.trial import MatchedHeadlines
from suite.attacks.weights.quantization import RoundToNearest
from suite.config.errors import EngineError
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine, ask
from suite.engines.transformers.engine import TransformersEngine as Engine
from suite.evaluation.retention_matching import mixed_weights
from suite.models.checkpoints import KeyedCheckpoint, SavedCheckpoint, TensorCheckpoint, interpolated
from suite.spec.measure import MeasureSpec
from suite.spec.search_space import plan
from suite.spec.trial import trial
from suite.spec.yaml_file import load_file, merged
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from suite.trials.given_checkpoint import measure_checkpoint
from suite.trials.run import TrialResult, run_trial
from tasks import TASKS
from tasks.scoring import score
from tasks.task import Split, Zero
from tests.support.command import regrade
from tests.support.processes import start
from tests.support.small import SMALL

LEARNT = merged(
    SMALL,
    {
        "model": {"tiny": {"hidden": 64, "vocabulary": 1024}},
        "anchors": {"epochs": 16, "lr": 6e-3},
        "objective": {"retain_weight": 5},
        "optimizer": {"lr": 3e-3},
        "steps": 20,
        "batch_size": 16,
    },
)
"""A trial that costs utility, on a model that is just large enough to have some."""
RTN, RELEARN = {"name": "rtn", "bits": 4}, {"name": "relearn", "samples": 12, "steps": 2, "lr": 1e-3}
MEASURE = MeasureSpec(attacks=(RTN, RELEARN))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("matched"))


@pytest.fixture(scope="module")
def result(store):
    return run_trial(trial(LEARNT), store, measure=MEASURE)


def test_the_floor_is_the_boards():
    assert MeasureSpec().match == FLOOR


def matched(result: TrialResult, floor: float = 0.9, split: Split = Split.TEST) -> MatchedHeadlines | None:
    """What the board reads of a trial, from the rows that it returned."""
    content = {"trials": [result.row], "measurements": result.measurements}
    tables = {name: schema.to_arrow(name, rows) for name, rows in content.items()}
    (engine,) = {row["engine"] for row in result.measurements}
    measured = TaskMeasurements.read(tables, "pocket", split)
    return measured.trial(result.row, engine, result.attacks[split], floor).matched


def weights_of(rows, attack: str) -> set[float]:
    """The mixing weights of rows under an attack."""
    return {share for row in rows if row["attack"] == attack and (share := share_of(row["matching"])) is not None}


def test_the_curve_crosses_the_floor_where_weights_mixed_by_hand_do(result, store):
    """By hand: weights interpolated in float64 and scored on test, compared with the target's scores."""
    (row,) = (r for r in result.measurements if r["metric"] == "mixing_weight")
    assert (row["matching"], row["split"], row["probe"]) == (curve_name(0.9), "test", "mixture")
    assert 0 < row["value"] < 1
    task = TASKS["pocket"].build()
    stages = sorted((store.root / "stages").glob("unlearn/*-*/final"))
    unlearned = SavedCheckpoint(stages[0])
    both = prepare_anchors(trial(LEARNT), task, store.stages, RuntimeSpec())
    target = both.target.checkpoint
    engine = TransformersEngine(both.base.encoder, dtype="float32", device=torch.device("cpu"))
    probes = tuple(p for p in task.probes_of(Split.TEST) if p.name in {h.probe for h in task.utility})

    def scores(state):
        samples = ask(engine, TensorCheckpoint(state, target.architecture), probes)
        return {h: score(h.metric, samples[h.probe]).value for h in task.utility}

    def at(share):
        one, other = target.state(), unlearned.state()
        return {name: ((1 - share) * w.double() + share * other[name].double()).float() for name, w in one.items()}

    target_scores = scores(target.state())

    def utility(share):
        mixed = scores(at(share))
        shares = ((mixed[h] - h.chance) / (target_scores[h] - h.chance) for h in task.utility)
        return min(min(1.0, max(0.0, one)) for one in shares)

    weights = sorted({0.0, *weights_of(result.measurements, "none"), 1.0})
    assert set(weights) >= {0, 0.25, 0.5, 0.75, 1}
    heights = [utility(weight) for weight in weights]
    assert np.interp(row["value"], weights, heights) == pytest.approx(0.9, abs=1e-5)
    assert max(np.interp(np.linspace(row["value"] + 1e-4, 1, 999), weights, heights)) < 0.9
    chord = [(1 - w) * heights[0] + w * heights[-1] - height for w, height in zip(weights, heights, strict=True)]
    assert matched(result).barrier.value == pytest.approx(max(chord), abs=1e-5)
    # The neighbours of the crossing are attacked, and every attack was made on the same weights.
    attacked = [weights_of(result.measurements, attack) for attack in result.attacks[Split.TEST][1:]]
    assert attacked[0] == attacked[1] < {*weights}
    below, above = max(w for w in weights if w < row["value"]), min(w for w in weights if w > row["value"])
    assert {below, above} - {0.0, 1.0} <= attacked[0]


def test_every_headline_is_given_raw_and_matched(result):
    raw, read = result.headlines(Split.TEST), matched(result)
    assert raw.utility.value < 0.8 and read.headlines.utility.value == 0.9
    assert read.headlines.forgetting.value < raw.forgetting.value
    assert read.headlines.recovery.keys() == raw.recovery.keys() and read.headlines.score.known
    assert {r["matching"] for r in result.measurements if r["subject"] in ("target", "retrained")} == {"raw"}


def test_other_floors_share_what_was_measured(result, store):
    """At a floor below its utility the weights are read as they are, and utility along the way is known already."""
    again = Store(store.root)
    outcome = run_trial(trial(LEARNT), again, measure=MEASURE.model_copy(update={"match": 0.3}))
    assert again.stages.computed == {}
    assert matched(outcome, 0.3).headlines == outcome.headlines(Split.TEST)
    assert matched(outcome, 0.9) is None


def test_without_matching_nothing_is_mixed(store):
    off = Store(store.root)
    outcome = run_trial(trial(LEARNT), off, measure=MEASURE.model_copy(update={"match": None}))
    assert off.stages.computed == {} and {r["matching"] for r in outcome.measurements} == {"raw"}


def test_each_attacked_split_has_a_curve_of_its_own(store, tmp_path):
    mine = Store(shutil.copytree(store.root, tmp_path / "store"))
    outcome = run_trial(trial(LEARNT), mine, measure=MeasureSpec(attacks=(RTN,), splits=("dev", "test")))
    found = {split: matched(outcome, split=split) for split in Split}
    assert [read.headlines.utility.value for read in found.values()] == [0.9, 0.9]
    assert all(read.headlines.score.known for read in found.values())
    assert found[Split.DEV].weight.value != found[Split.TEST].weight.value
    only_test = run_trial(trial(LEARNT), mine, measure=MeasureSpec(attacks=(RTN,), splits=("test", "all")))
    assert matched(only_test).headlines == found[Split.TEST].headlines
    assert matched(only_test, split=Split.DEV) is None


def test_a_model_that_knows_nothing_has_no_matched_numbers_and_a_reason(tmp_path):
    outcome = run_trial(trial(SMALL), Store(tmp_path), measure=MeasureSpec(attacks=(RTN,), limit=2))
    read = matched(outcome)
    reason = read.headlines.score.reason
    assert read.weight.reason == reason and reason.startswith("utility cannot be matched: utility is not known: ")
    assert not any(weights_of(outcome.measurements, "rtn[bits=4]"))


def test_a_trial_killed_while_it_is_matched_goes_on_to_the_same_rows(store, result, tmp_path):
    """Killed after every few evaluations: along the curve, and under attacks."""
    spec, mine = tmp_path / "spec.yaml", tmp_path / "store"
    shutil.copytree(store.root / "stages", mine / "stages", ignore=shutil.ignore_patterns("samples"))
    spec.write_text(yaml.safe_dump(LEARNT | {"measure": {"attacks": [RTN, RELEARN]}}))
    done = 0
    while True:
        process = start("run", spec, "--store", mine)
        while process.poll() is None and len([*mine.glob("stages/samples/*.json")]) <= done + 5:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        done = len([*mine.glob("stages/samples/*.json")])
        Board(mine / "board").read("measurements")  # readable at every instant
    assert process.wait().returncode == 0 and done > 8
    board = Board(mine / "board")
    assert board.result_rows("measurements").equals(store_rows(store, Store(mine)))
    assert board.result_rows("trials").equals(store.board.result_rows("trials"))


def test_validate_says_what_matching_costs(tmp_path):
    spec = tmp_path / "spec.yaml"
    relearn = RELEARN | {"points": 2}
    spec.write_text(yaml.safe_dump(SMALL | {"measure": {"attacks": [RTN, relearn], "splits": ["dev", "test"]}}))
    cost = json.loads(regrade("validate", spec, "--json").stdout)["trials"][0]["cost"]
    # 3 to 6 weights on each of two splits, without an attack; under two attacks, one at two points, none to all.
    assert (cost["matching_least"], cost["matching_most"]) == (3 * 2, 6 * 2 * (1 + 1 + 2))
    said = regrade("validate", spec).stdout
    assert "6 to 48" in said and "measure.match=null turns it off" in said
    off = regrade("validate", spec, "measure.match=null")
    cost = json.loads(regrade("validate", spec, "measure.match=null", "--json").stdout)["trials"][0]["cost"]
    assert (cost["matching_least"], cost["matching_most"]) == (0, 0) and "turns it off" not in off.stdout


@pytest.mark.parametrize("floor", ["0", "-0.1", "1.1", "nan", "high", "[0.9]"])
def test_a_floor_that_cannot_be_is_refused_by_its_key(tmp_path, floor):
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SMALL))
    refused = regrade("validate", spec, f"measure.match={floor}", code=2).stderr
    assert refused.startswith("regrade: measure.match: ") and "Traceback" not in refused


def test_the_quickstart_is_not_matched():
    assert plan(load_file(Path("configs/sweeps/grades.yaml"), ())).measure.match is None


def test_a_mixtures_ends_are_the_models_themselves():
    tensors = {"w": torch.tensor([0.1, -3.3, 1e-8]), "n": torch.tensor([3])}
    others = {"w": torch.tensor([1e4, 0.7, -1e-8]), "n": torch.tensor([3])}
    one, other = (TensorCheckpoint(t, None) for t in (tensors, others))
    assert torch.equal(interpolated(one, other, 0.0).state()["w"], tensors["w"])
    assert torch.equal(interpolated(one, other, 1.0).state()["w"], others["w"])
    unlearned = KeyedCheckpoint(other, "u", "final")

    class Both:
        target = KeyedCheckpoint(one, "t")

    assert mixed_weights(1.0, unlearned, Both) is unlearned
    assert mixed_weights(0.0, unlearned, Both).key == "t"
    assert mixed_weights(0.5, unlearned, Both).key != mixed_weights(0.25, unlearned, Both).key


def broken(*args):
    raise torch.OutOfMemoryError("not enough memory for this edit")


def test_an_attack_that_fails_takes_nothing_else_with_it(store, result, tmp_path, monkeypatch):
    """The clean rows and the other attacks' rows are kept, failed rows give the reason, and the next run fixes them."""
    shutil.copytree(store.root / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("samples"))
    mended = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(RoundToNearest, "edited", broken)
        failing = run_trial(trial(LEARNT), mended, measure=MEASURE)
    rows = mended.board.read("measurements").to_pylist()
    failed = [r for r in rows if r["attack"] == "rtn[bits=4]"]
    assert failed
    assert {(r["status"], r["value"]) for r in failed} == {("failed", None)}
    assert {r["reason"] for r in failed} == {"OutOfMemoryError: not enough memory for this edit"}
    kept = [r for r in failing.measurements if r["attack"] != "rtn[bits=4]"]
    assert kept and all(r["status"] == "ok" for r in kept)
    now = failing.headlines(Split.TEST)
    assert now.forgetting == result.headlines(Split.TEST).forgetting
    assert now.robustness.value is None
    assert "not enough memory" in now.robustness.reason
    assert failing.failures == ["rtn[bits=4] failed: OutOfMemoryError: not enough memory for this edit"]
    run_trial(trial(LEARNT), mended, measure=MEASURE)
    assert mended.board.result_rows("measurements").equals(store_rows(store, mended))


def store_rows(store, mended):
    """The rows of a store without failures, at the floor that both stores have."""

    table = store.board.result_rows("measurements")
    return table.filter(pc.is_in(table["matching"], pc.unique(mended.board.result_rows("measurements")["matching"])))


def test_an_engine_that_fails_under_an_attack_goes_on_with_the_others(store, result, tmp_path, monkeypatch):
    shutil.copytree(store.root / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("samples"))
    loaded = Engine._loaded

    def short_of_memory(self, checkpoint):
        if getattr(checkpoint, "name", "") == "rtn[bits=4]":
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return loaded(self, checkpoint)

    monkeypatch.setattr(Engine, "_loaded", short_of_memory)
    failing = run_trial(trial(LEARNT), Store(tmp_path), measure=MEASURE)
    statuses = {(r["attack"], r["status"]) for r in failing.measurements}
    relearn = failing.attacks[Split.TEST][2]
    assert statuses == {("none", "ok"), ("rtn[bits=4]", "failed"), (relearn, "ok")}


def test_a_subject_that_cannot_be_asked_at_all_ends_the_trial(store, result, tmp_path, monkeypatch):
    shutil.copytree(store.root / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("samples"))
    monkeypatch.setattr(Engine, "_likelihoods", broken)
    with pytest.raises(EngineError, match="target cannot be evaluated, OutOfMemoryError: not enough memory"):
        run_trial(trial(LEARNT), Store(tmp_path), measure=MEASURE)


IDLE = (
    {"name": "rtn", "bits": 32},
    {"name": "prune", "by": "magnitude", "sparsity": 0.0},
    {"name": "prune", "by": "wanda", "sparsity": 0.0, "samples": 4},
    {"name": "noise", "sigma": 0.0},
    {"name": "relearn", "samples": 4, "steps": 0, "lr": 1e-3},
    {"name": "relearn", "texts": "unasked", "samples": 4, "epochs": 0, "lr": 1e-3, "adapter": "lora"},
    {"name": "benign", "samples": 4, "steps": 0, "lr": 1e-3},
    {"name": "task_vector", "samples": 4, "steps": 2, "lr": 1e-3, "scale": 0.0},
    {"name": "merge", "share": 0.0},
    {"name": "refusal_direction", "layer": 0, "samples": 4, "strength": 0.0},
    {"name": "few_shot", "shots": 0},
    {"name": "prefill", "words": 0},
    {"name": "multi_turn", "after": "self", "rounds": 0},
    {"name": "multi_turn", "after": "related", "turns": 0},
    {"name": "gcg", "steps": 0},
    {"name": "gcg", "steps": 1, "tokens": 0},
)
"""Attacks without strength."""


def test_attacks_without_strength_leave_every_row_as_it_was_bit_for_bit(store, result):
    measure = MeasureSpec(attacks=IDLE, match=None, limit=4)
    outcome = run_trial(trial(LEARNT), Store(store.root), measure=measure)
    assert len(outcome.attacks[Split.TEST]) == len(IDLE) + 1

    def rows(attack):
        about = ("subject", "probe", "metric", "value", "stderr", "n", "reason")
        return [tuple(r[key] for key in about) for r in outcome.measurements if r["attack"] == attack]

    for attack in outcome.attacks[Split.TEST]:
        assert rows(attack) == rows("none"), attack


def test_the_attacked_retrained_model_recovers_nothing(result):
    """It is the zero of recovery under every attack, whatever the attack teaches."""
    rows = {s: [r for r in result.measurements if (r["subject"], r["matching"]) == (s, "raw")] for s in ANCHORS}
    target, retrained = (
        HeadlineMeasurements.from_rows(subject, [r for r in rows[subject] if r["headline"]]) for subject in ANCHORS
    )
    found = headlines(retrained, target, retrained, result.attacks[Split.TEST])
    assert {name: e.value for name, e in found.recovery.items()} == dict.fromkeys(result.attacks[Split.TEST], 0.0)
    assert (found.forgetting.value, found.robustness.value) == (1.0, 1.0)


@pytest.mark.parametrize("retrained", [True, False])
def test_a_checkpoint_by_itself_has_the_headlines_that_the_board_gives_its_trial(store, result, retrained, monkeypatch):
    """Also on a task anchored by chance: the zero is the retrained model if one is named, and chance otherwise."""
    pocket = TASKS["pocket"]
    by_chance = replace(pocket, build=lambda: replace(pocket.build(), anchored=Zero.CHANCE))
    monkeypatch.setitem(TASKS.own, "pocket", by_chance)
    stages = store.root / "stages"
    names = ("target", "retrained") if retrained else ("target",)
    anchors = {name: str(next(p for p in (stages / name).glob("*-*") if p.is_dir())) for name in names}
    plain = {key: value for key, value in LEARNT.items() if key not in ("anchors", "model")}
    spec = trial({**plain, "model": {"name": "/any/model", "template": "bare"}, "anchors": anchors})
    measure = MeasureSpec(attacks=(RTN,), match=None)
    mine = Store(store.root.with_name(f"by-chance-{retrained}"))
    run_trial(spec, mine, measure=measure)
    (entry,) = rank(mine.board, "pocket", "test").entries
    unlearned = next(p for p in (mine.root / "stages" / "unlearn").glob("*-*/final"))
    measured = measure_checkpoint(
        str(unlearned), "pocket", spec.model, mine.stages, anchors=anchors, measure=measure
    ).headlines["test"]
    assert measured.forgetting.known and measured.utility.known
    assert (measured.forgetting.value, measured.utility.value) == (entry.forgetting.value, entry.utility.value)
    recovery = {attack: number.value for attack, number in entry.recovery.items() if attack in measured.recovery}
    assert recovery == {attack: estimate.value for attack, estimate in measured.recovery.items()}
