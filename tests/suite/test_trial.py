"""A trial from end to end, on the real path with a small model."""

from __future__ import annotations

import math

import pytest

from leaderboard.board.schema import columns
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.trials.run import run_trial
from tasks.task import Split
from tests.support.small import SMALL

RELEARN = {"name": "relearn", "samples": 4, "steps": 2, "lr": 1e-3, "points": 2}
FEW = MeasureSpec(attacks=({"name": "rtn", "bits": 4}, RELEARN), splits=(Split.DEV, Split.TEST), limit=4)


def with_(**changes):
    return trial(merged(SMALL, changes))


@pytest.fixture
def store(warm_store, tmp_path):
    """A store of its own, with the anchors that all small trials share."""
    import shutil

    shutil.copytree(warm_store, tmp_path / "store")
    return Store(tmp_path / "store")


def test_a_trial_brings_its_rows_and_the_second_run_computes_nothing(store):
    stages_seen = []
    result = run_trial(
        trial(SMALL), store, measure=FEW, on_stage=lambda stage, rows: stages_seen.append((stage, len(rows)))
    )
    assert [stage for stage, _ in stages_seen] == ["anchors", "unlearn", "evaluate", "attack"]
    everything = store.board.read("measurements").to_pylist()
    assert len(everything) == len(result.measurements)
    rows = [r for r in everything if r["matching"] == "raw"]
    assert {(r["subject"], r["attack"], r["point"], r["split"]) for r in rows} == {
        (subject, attack, point, split)
        for subject in ("target", "retrained", "unlearned")
        for attack, points in (("none", [0]), ("rtn[bits=4]", [0]), (result.attacks[Split.TEST][2], [1, 2]))
        for point in points
        for split in (("dev", "test", "all") if attack == "none" else ("dev", "test"))
    }
    assert all(math.isfinite(r["value"]) and 0 < r["n"] <= (8 if r["split"] == "all" else 4) for r in rows)
    (row,) = store.board.read("trials").to_pylist()
    assert (row["status"], row["steps_done"], row["grade"], row["trial"]) == ("ok", 4, "first", trial(SMALL).id)
    assert (row["value_calls"], row["gradient_calls"], row["curvature_calls"]) == (0, 4, 0)
    assert row["tokens"] > 0
    assert row["change_norm"] > 0
    before = {table: store.board.result_rows(table) for table in ("trials", "measurements", "samples")}
    again = Store(store.root)
    run_trial(trial(SMALL), again, measure=FEW)
    assert again.stages.computed == {}
    assert sum(len(keys) for keys in again.stages.reused.values()) > 0
    for table, old in before.items():
        assert again.board.result_rows(table).equals(old)


def test_rows_are_the_same_bits_in_another_store(store, tmp_path):
    run_trial(trial(SMALL), store, measure=FEW)
    other = Store(tmp_path / "other")
    run_trial(trial(SMALL), other, measure=FEW)  # its anchors are trained anew
    for table in ("trials", "measurements", "samples"):
        assert store.board.result_rows(table).equals(other.board.result_rows(table)), table


def test_samples_on_the_board_give_the_measurements_again(store):
    """A headline can be computed from the samples alone, without a model."""
    from suite.evaluation.evaluator import read_samples
    from tasks.scoring import score

    result = run_trial(trial(SMALL), store, measure=FEW)
    row = next(
        r
        for r in result.measurements
        if r["metric"] == "probability" and r["subject"] == "unlearned" and r["split"] != "all"
    )
    table = store.board.read("samples", {"samples": row["samples"], "probe": row["probe"]})
    rows = table.to_pylist()
    assert len(rows) == row["n"]
    by_hand = sum(math.exp(sum(r["token_logprobs"]) / len(r["token_logprobs"])) for r in rows) / len(rows)
    assert row["value"] == pytest.approx(by_hand, rel=1e-12)
    (file,) = (store.root / "board" / "samples").glob(f"{row['samples']}*")
    assert score("probability", read_samples(file, [row["probe"]])[row["probe"]]).value == row["value"]


def test_a_later_attack_adds_rows_to_an_old_trial(store):
    run_trial(trial(SMALL), store, measure=MeasureSpec(attacks=(), limit=4))
    again = Store(store.root)
    run_trial(trial(SMALL), again, measure=MeasureSpec(attacks=({"name": "rtn", "bits": 3},), limit=4))
    assert set(again.stages.computed) == {"samples"}
    assert len(again.stages.computed["samples"]) == 3  # the new attack on the trial and on both anchors
    assert len(again.board.read("trials")) == 1
    assert {r["attack"] for r in again.board.read("measurements").to_pylist()} == {"none", "rtn[bits=3]"}


def test_seeds_share_everything_but_the_unlearning(store):
    run_trial(trial(SMALL), store, measure=FEW)
    other = Store(store.root)
    result = run_trial(with_(seed=1), other, measure=FEW)
    assert len(other.stages.computed["unlearn"]) == 1
    assert len(other.stages.computed["samples"]) == 2 * 4  # of the unlearned model, not of the anchors
    assert "target" not in other.stages.computed
    weights = {r["weights"] for r in other.board.read("trials").to_pylist()}
    assert len(weights) == 2
    assert result.row["entry"] == trial(SMALL).entry


def test_kept_checkpoints_are_measured_and_until_stops(store):
    kept = run_trial(with_(checkpoints={"every": 1}), store, measure=MeasureSpec(attacks=(), limit=4))
    subjects = {r["subject"] for r in kept.measurements}
    assert {"unlearned@1", "unlearned@2", "unlearned@3", "unlearned"} <= subjects
    plain = run_trial(trial(SMALL), store, measure=MeasureSpec(attacks=(), limit=4))
    assert plain.row["weights"] == kept.row["weights"], "keeping checkpoints does not change the run"


def test_until_needs_an_anchor_gap_and_stops_where_it_holds(tmp_path):
    """On a model that remembers something: knowledge falls under a generous bound at the first checkpoint."""
    learns = {
        "model": {"tiny": {"hidden": 64, "layers": 1, "heads": 2, "vocabulary": 512}},
        "anchors": {"epochs": 20, "lr": 3e-3, "retain_limit": 16},
        "optimizer": {"name": "adam", "lr": 1e-2},
        "objective": {"name": "gradient_ascent"},
        "steps": 12,
        "checkpoints": {"every": 2},
        "until": "knowledge<=0.9",
    }
    store = Store(tmp_path)
    stopped = run_trial(with_(**learns), store, measure=MeasureSpec(attacks=()))
    assert stopped.row["status"] == "stopped"
    assert stopped.row["steps_done"] in range(2, 12, 2)
    assert "knowledge<=0.9" in stopped.row["reason"]


def test_requests_are_unlearned_one_after_another(store):
    spec = with_(forget=["people", "minerals", "passages"], steps=2)
    result = run_trial(spec, store, measure=MeasureSpec(attacks=(), limit=4))
    assert len(store.stages.computed["unlearn"]) == 3
    assert result.row["steps_done"] == 6
    assert {"unlearned@2", "unlearned@4", "unlearned"} <= {r["subject"] for r in result.measurements}
    with pytest.raises(SpecError, match="every request of pocket once"):
        run_trial(with_(forget=["people"]), store, measure=FEW)


def test_a_run_that_diverges_is_a_row(store):
    spec = with_(optimizer={"name": "sgd", "lr": 1e30}, objective="gradient_ascent")
    result = run_trial(spec, store, measure=MeasureSpec(attacks=(), limit=4))
    assert result.row["status"] == "diverged"
    assert "step" in result.row["reason"]
    (row,) = store.board.read("trials").to_pylist()
    assert row["status"] == "diverged"
    for measured in result.measurements:
        assert measured["value"] is None or math.isfinite(measured["value"])
        assert (measured["value"] is None) == (measured["status"] == "null") == (measured["reason"] is not None)


def test_a_report_may_end_the_trial_and_the_next_run_goes_on(store):
    result = run_trial(trial(SMALL), store, measure=FEW, on_stage=lambda stage, rows: stage == "evaluate")
    assert {r["attack"] for r in result.measurements} == {"none"}
    assert "not measured under" in result.headlines(Split.TEST).robustness.reason
    resumed = run_trial(trial(SMALL), store, measure=FEW)
    assert {r["attack"] for r in resumed.measurements} > {"none"}
    assert len(store.board.read("trials")) == 1


def test_trainable_patterns(store):
    result = run_trial(with_(trainable="*mlp*"), store, measure=MeasureSpec(attacks=(), limit=4))
    assert 0 < result.row["changed_share"] <= 1
    with pytest.raises(SpecError, match="matches no parameter"):
        run_trial(with_(trainable="*nonsense*"), store, measure=FEW)


def test_threads_are_part_of_what_a_stage_depends_on(store):
    run_trial(trial(SMALL), store, measure=MeasureSpec(attacks=(), limit=2))
    other = Store(store.root)
    run_trial(trial(SMALL), other, measure=MeasureSpec(attacks=(), limit=2), runtime=RuntimeSpec(threads=2))
    assert set(other.stages.computed) >= {"target", "retrained", "unlearn"}


def test_bf16_weights_go_the_whole_way(tmp_path):
    spec = with_(model={"dtype": "bfloat16"}, optimizer={"name": "r_adazo", "lr": 1e-2}, steps=2)
    result = run_trial(spec, Store(tmp_path), measure=MeasureSpec(attacks=({"name": "rtn", "bits": 4},), limit=2))
    assert result.row["dtype"] == "bfloat16"
    assert {r["engine"] for r in result.measurements} == {"transformers-bfloat16"}


def test_every_column_that_a_trial_fills_is_in_the_schema(store):
    result = run_trial(trial(SMALL), store, measure=FEW)
    assert set(result.row) <= set(columns("trials"))
    assert all(set(row) <= set(columns("measurements")) for row in result.measurements)
