"""Anchors that are not trained here, chance instead of a retrained model, and a checkpoint without a trial."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.config.settings import parse
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training.anchors import named_checkpoints, prepare_anchors
from suite.trials.given_checkpoint import measure_checkpoint
from suite.trials.preflight import preflight
from suite.trials.run import run_trial
from tasks import TASKS, Split, Zero
from tests.support.small import SMALL

FEW = MeasureSpec(attacks=({"name": "rtn", "bits": 4},), limit=6)
BARE = {"name": "/models/any", "template": "bare"}


@pytest.fixture
def store(warm_store, tmp_path):
    shutil.copytree(warm_store, tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def trained(store):
    return prepare_anchors(trial(SMALL), TASKS["pocket"].build(), store.stages, RuntimeSpec())


def given(**where):
    plain = {key: value for key, value in SMALL.items() if key not in ("anchors", "model")}
    return trial({**plain, "model": BARE, "anchors": where})


def numbers(result, subject):
    return {
        (r["attack"], r["probe"], r["metric"]): (r["value"], r["stderr"])
        for r in result.measurements
        if r["subject"] == subject
    }


def test_given_checkpoints_serve_as_the_anchors_that_they_are(store, trained):
    anchor_paths = {name: str(anchor.checkpoint.path) for name, anchor in trained.subjects.items()}
    mine = run_trial(trial(SMALL), store, measure=FEW)
    other = run_trial(given(**anchor_paths), store, measure=FEW)
    assert other.row["anchor_ids"] == mine.row["anchor_ids"]
    assert other.row["weights"] == mine.row["weights"]
    assert other.row["anchors"] != mine.row["anchors"]  # another recipe: found, not trained
    for subject in ("target", "retrained", "unlearned"):
        assert numbers(other, subject) == numbers(mine, subject)


def test_without_a_model_the_target_is_the_model(tmp_path):
    plain = {key: value for key, value in SMALL.items() if key != "model"}
    anchors = {"target": "/models/a", "retrained": "/models/b"}
    spec = trial({**plain, "anchors": anchors})
    assert spec.model.name == "/models/a"
    assert spec.canonical["model"] == {"name": "/models/a"}
    assert trial(spec.canonical).id == spec.id
    assert trial({**plain, "anchors": anchors, "model": {"dtype": "bfloat16"}}).model.name == "/models/a"
    tiny = trial({**plain, "anchors": anchors, "model": {"name": "tiny"}})
    assert tiny.model.name == "tiny"
    assert tiny.canonical["model"] == {"name": "tiny"}, "or the normal form would be about the target's folder"
    assert trial(tiny.canonical).id == tiny.id != spec.id
    assert "model" not in trial({**SMALL, "model": {"name": "tiny"}}).canonical


def test_a_model_beside_a_target_has_to_be_the_target_s(store, trained, tmp_path):
    folders = {name: str(anchor.checkpoint.path) for name, anchor in trained.subjects.items()}
    plain = {**{key: value for key, value in SMALL.items() if key != "model"}, "anchors": folders}
    fitting = (SMALL["model"], {"name": folders["retrained"]}, {"name": folders["target"], "template": "bare"})
    for model in fitting:
        preflight([trial({**plain, "model": model})], FEW, RuntimeSpec())
    with pytest.raises(SpecError, match=r"model.name: tiny has hidden_size=192, and anchors.target .* has 32. Leave"):
        preflight([trial({**plain, "model": {"name": "tiny"}})], FEW, RuntimeSpec())
    other = Path(shutil.copytree(folders["target"], tmp_path / "other"))
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    with pytest.raises(SpecError, match=r"model.name: .*other has num_hidden_layers=2, and anchors.target .* has 1"):
        preflight([trial({**plain, "model": {"name": str(other)}})], FEW, RuntimeSpec())


def test_without_a_retrained_model_chance_is_the_zero(store, trained):
    spec = given(target=str(trained.target.checkpoint.path))
    result = run_trial(spec, store, measure=FEW)
    assert result.row["anchor_ids"] == f"{trained.target.weights}:chance"
    assert {r["subject"] for r in result.measurements} == {"target", "unlearned"}
    # The small model remembers too little for a share of it; what matters is that there is a zero.
    assert "no retrained model" not in (result.headlines(Split.TEST).forgetting.reason or "")


def test_a_task_with_retrained_models_refuses_to_go_without_one(trained):
    spec = given(target=str(trained.target.checkpoint.path))
    with pytest.raises(SpecError, match=r"anchors\.retrained: missing\. pocket is measured against"):
        preflight([spec], FEW, RuntimeSpec())


def test_published_checkpoints_are_known_by_the_model_they_were_made_from():
    spec = trial(
        merged(
            {k: v for k, v in SMALL.items() if k not in ("anchors", "model")},
            {"task": "tofu/forget10", "model": {"name": "Llama-3.2-1B-Instruct"}, "anchors": "published"},
        )
    )
    assert named_checkpoints(spec) == (
        "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        "open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90",
    )
    unknown = trial(merged(spec.canonical, {"model": {"name": "Llama-3.2-1B"}}))
    with pytest.raises(SpecError, match=r"no published checkpoints of Llama-3\.2-1B\. Did you mean Llama-3\.2-1B-Inst"):
        named_checkpoints(unknown)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "anchors.epochs: missing, and it has no default"),
        ({"epochs": 1}, "anchors.lr: missing, and it has no default"),
        ({"source": "published", "epochs": 1}, "anchors.epochs: nothing is trained where the checkpoints are given"),
        ({"target": "a/b", "lr": 0.1}, "anchors.lr: nothing is trained"),
        ({"retrained": "a/b", "epochs": 1, "lr": 0.1}, "anchors.retrained: needs a target beside it"),
        ({"source": "published", "target": "a/b"}, "anchors: target belongs to checkpoints of your own"),
    ],
)
def test_anchors_come_from_one_place(said, message):
    with pytest.raises(SpecError) as error:
        given(**said)
    assert str(error.value).startswith(message)


def test_a_checkpoint_by_itself_measures_what_the_trial_measured(store, trained):
    result = run_trial(trial(SMALL), store, measure=FEW.model_copy(update={"splits": tuple(Split)}))
    rows = measure_checkpoint(
        str(trained.target.checkpoint.path),
        "pocket",
        parse(ModelSpec, BARE),
        store.stages,
        measure=MeasureSpec(attacks=(), splits=tuple(Split), limit=6),
    ).rows

    def plain(rows):
        return {(r["split"], r["probe"], r["metric"]): (r["value"], r["stderr"], r["n"]) for r in rows}

    of_target = [r for r in result.measurements if r["subject"] == "target" and r["attack"] == "none"]
    assert {row["split"] for row in rows} == {"dev", "test", "all"}
    assert plain(rows) == plain(of_target)


def test_the_questions_of_both_splits_are_those_of_each(store):
    """The mean over both splits is the mean of their means, weighted by their numbers of questions."""
    result = run_trial(trial(SMALL), store, measure=FEW.model_copy(update={"splits": tuple(Split), "limit": None}))
    rows = {
        (r["split"], r["probe"], r["metric"]): r
        for r in result.measurements
        if r["subject"] == "unlearned" and r["attack"] == "none"
    }
    for (split, probe, metric), row in rows.items():
        if split == "all":
            parts = [rows[one, probe, metric] for one in Split]
            assert row["n"] == sum(part["n"] for part in parts)
            mean = sum(part["value"] * part["n"] for part in parts) / row["n"]
            assert row["value"] == pytest.approx(mean, rel=1e-12, abs=1e-12)
            assert row["samples"] == ":".join(part["samples"] for part in parts)


def test_weights_that_never_moved_are_said_to_be_the_targets(store):
    """Published runs report scores of models that never changed, as the step size was below the dtype's resolution."""
    plain = merged(SMALL, {"optimizer": {"name": "sgd", "lr": 1e-30}})
    result = run_trial(trial(plain), store, measure=MeasureSpec(attacks=(), limit=2))
    assert (result.row["status"], result.row["changed_share"]) == ("unchanged", 0.0)
    assert result.row["reason"] == "every weight is still the target's: nothing was unlearned"
    assert run_trial(trial(SMALL), store, measure=MeasureSpec(attacks=(), limit=2)).row["status"] == "ok"


def test_a_model_by_path_is_asked_in_the_dtype_that_the_spec_names(trained):
    from suite.models.loading import resolve_model

    path = str(trained.target.checkpoint.path)
    for dtype in ("float32", "bfloat16"):
        state = resolve_model(ModelSpec(name=path, dtype=dtype), path).checkpoint.state()
        assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{dtype}"}


def test_a_task_anchored_by_chance_trains_no_retrained_model(store):
    task = replace(TASKS["pocket"].build(), anchored=Zero.CHANCE)
    anchors = prepare_anchors(trial(SMALL), task, store.stages, RuntimeSpec())
    assert anchors.retrained is None
    assert list(anchors.subjects) == ["target"]
    other = replace(task, anchored=Zero.RETRAINED)
    assert anchors.id != prepare_anchors(trial(SMALL), other, store.stages, RuntimeSpec()).id


def test_a_checkpoint_beside_itself_has_nothing_to_compare(store, trained, monkeypatch):
    """One checkpoint under three names is evaluated once, and every comparison finds no difference."""
    monkeypatch.setenv("REGRADE_DATA", str(Path(__file__).parents[2] / "configs"))
    path = str(trained.target.checkpoint.path)
    rows = measure_checkpoint(
        path,
        "custom/lighthouses",
        parse(ModelSpec, BARE),
        store.stages,
        anchors={"target": path, "retrained": path},
        measure=MeasureSpec(attacks=(), limit=2),
    ).rows
    assert len(store.stages.computed["samples"]) == 1
    values = {r["metric"]: r["value"] for r in rows if r["probe"] == "membership"}
    assert (values["auc_reference"], values["privleak_min_k_40"]) in ((0.5, 0.0), (0.5, None))
