"""Retention matching against brute force, and what happens to a trial when one of its attacks fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.board.schema import ANCHORS, matching
from leaderboard.ranking.headlines import HeadlineMeasurements, headlines
from leaderboard.ranking.rank import FLOOR, rank
from suite.attacks.weights.quantization import RoundToNearest
from suite.config.errors import EngineError
from suite.engines import TransformersEngine, ask
from suite.engines.transformers.engine import TransformersEngine as Engine
from suite.evaluation.retention_matching import mixed_weights
from suite.models.checkpoints import KeyedCheckpoint, SavedCheckpoint, TensorCheckpoint, interpolated
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.trials.given_checkpoint import measure_checkpoint
from suite.trials.run import run_trial
from tasks import TASKS
from tasks.scoring import Estimate, score
from tasks.task import Split, Zero
from tests.support.small import SMALL

LEARNT = merged(
    SMALL,
    {
        "model": {"tiny": {"hidden": 64}},
        "anchors": {"epochs": 12, "lr": 1e-2},
        "objective": {"retain_weight": 5},
        "optimizer": {"lr": 3e-3},
        "steps": 20,
        "batch_size": 16,
    },
)
"""A trial that costs utility, on a model that is just large enough to have some."""
RTN, RELEARN = {"name": "rtn", "bits": 4}, {"name": "relearn", "samples": 12, "steps": 2, "lr": 1e-3}
MEASURE = MeasureSpec(attacks=(RTN, RELEARN))
NAME = matching(0.9)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("matched"))


@pytest.fixture(scope="module")
def result(store):
    return run_trial(trial(LEARNT), store, measure=MEASURE)


@given(st.integers(0, 100), st.floats(0.01, 1), st.booleans())
def test_the_largest_share_is_found_by_asking_every_share(crossing, floor, exactly):
    """Utility falls along a line that crosses the floor at some share, there or just before the next."""
    height = {k: floor + (crossing - k) * 0.01 - (0 if exactly else 1e-9) * (k > crossing) for k in range(101)}
    tried = []

    def utility(share: float) -> Estimate:
        tried.append(share)
        return Estimate(height[round(100 * share)], 0.0, 10)

    best = max(k for k in range(101) if height[k] >= floor)
    match = largest_share(utility, floor)
    assert match.share == best / 100
    assert len(tried) <= 8


def test_where_utility_cannot_be_told_nothing_is_mixed():
    match = largest_share(lambda share: Estimate.null("the anchors are too close"), 0.9)
    assert (match.share, match.reason) == (None, "the anchors are too close")


def test_the_floor_is_the_boards():
    assert MeasureSpec().match == FLOOR


def test_the_mixture_keeps_the_floor_and_the_next_one_does_not(result, store):
    """By hand: weights interpolated in float64 and scored on dev, compared with the target's scores."""
    (row,) = (r for r in result.measurements if r["metric"] == "mixing_weight")
    assert (row["matching"], row["split"], row["probe"]) == (NAME, "dev", "mixture")
    share = row["value"]
    assert 0 < share < 1
    task = TASKS["pocket"].build()
    stages = sorted((store.root / "stages").glob("unlearn/*-*/final"))
    unlearned = SavedCheckpoint(stages[0])
    from suite.config.runtime import RuntimeSpec
    from suite.training.anchors import prepare_anchors

    both = prepare_anchors(trial(LEARNT), task, store.stages, RuntimeSpec())
    target = both.target.checkpoint
    engine = TransformersEngine(both.base.encoder, dtype="float32", device=torch.device("cpu"))
    probes = tuple(p for p in task.probes_of(Split.DEV) if p.name in {h.probe for h in task.utility})

    def scores(state):
        samples = ask(engine, TensorCheckpoint(state, target.architecture), probes)
        return {h: score(h.metric, samples[h.probe]).value for h in task.utility}

    def at(share):
        one, other = target.state(), unlearned.state()
        return {name: ((1 - share) * w.double() + share * other[name].double()).float() for name, w in one.items()}

    target_scores = scores(target.state())

    def utility(share):
        interpolated_scores = scores(at(share))
        return min((interpolated_scores[h] - h.chance) / (target_scores[h] - h.chance) for h in task.utility)

    assert utility(share) >= 0.9 - 1e-5
    assert utility(share + 0.01) < 0.9 + 1e-5


def test_every_headline_is_given_raw_and_matched(result):
    raw, matched = result.headlines(Split.TEST), result.headlines(Split.TEST, NAME)
    assert raw.utility.value < 0.8 < matched.utility.value
    assert matched.forgetting.value < raw.forgetting.value
    rows = {(r["attack"], r["matching"]) for r in result.measurements if r["subject"] == "unlearned"}
    attacks = result.attacks[Split.TEST]
    assert len(attacks) == 3
    assert rows == {(a, m) for a in attacks for m in ("raw", NAME)}
    assert {r["matching"] for r in result.measurements if r["subject"] in ("target", "retrained")} == {"raw"}


def test_weights_that_keep_the_floor_are_not_asked_twice(result, store):
    """At a floor below its utility the matched weights are the unlearned model, and the rows are the raw ones."""
    again = Store(store.root)
    outcome = run_trial(trial(LEARNT), again, measure=MEASURE.model_copy(update={"match": 0.3}))
    assert set(again.stages.computed) == {"mixture"}
    assert outcome.headlines(Split.TEST, matching(0.3)) == outcome.headlines(Split.TEST)


def test_a_mixtures_ends_are_the_models_themselves():
    tensors = {"w": torch.tensor([0.1, -3.3, 1e-8]), "n": torch.tensor([3])}
    others = {"w": torch.tensor([1e4, 0.7, -1e-8]), "n": torch.tensor([3])}
    one, other = (TensorCheckpoint(t, None) for t in (tensors, others))
    assert torch.equal(interpolated(one, other, 0.0).state()["w"], tensors["w"])
    assert torch.equal(interpolated(one, other, 1.0).state()["w"], others["w"])
    unlearned = KeyedCheckpoint(other, "u", "final")

    class Both:
        target = KeyedCheckpoint(one, "t")

    assert matched_weights(1.0, unlearned, Both) is unlearned
    assert matched_weights(0.0, unlearned, Both).key == "t"
    assert matched_weights(0.5, unlearned, Both).key != matched_weights(0.25, unlearned, Both).key


def broken(*args):
    raise torch.OutOfMemoryError("not enough memory for this edit")


def test_an_attack_that_fails_takes_nothing_else_with_it(store, result, tmp_path, monkeypatch):
    """The clean rows and the other attacks' rows are kept, failed rows give the reason, and the next run fixes them."""
    import shutil

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
    import pyarrow.compute as pc

    table = store.board.result_rows("measurements")
    return table.filter(pc.is_in(table["matching"], pc.unique(mended.board.result_rows("measurements")["matching"])))


def test_an_engine_that_fails_under_an_attack_goes_on_with_the_others(store, result, tmp_path, monkeypatch):
    import shutil

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
    import shutil

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
    monkeypatch.setitem(TASKS, "pocket", by_chance)
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
