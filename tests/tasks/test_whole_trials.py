"""Whole trials on published data, through the command, with a model that is made here: every number is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leaderboard.board.store import Board
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.trials.run import run_trial
from tasks import TASKS, Split, Zero
from tests.support.command import Output, regrade
from tests.support.published import MEMBERS

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "model.tiny={hidden: 32, layers: 1, heads: 2, vocabulary: 1024}",
    *("anchors.epochs=1", "anchors.retain_limit=20", "anchors.batch_size=8"),
    *("steps=2", "batch_size=4", "measure.limit=4", "measure.splits=[dev, test]", "measure.attacks=[]"),
]


def run(store: Path, spec: str, *settings: str, data: Path) -> Output:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRADE_DATA", str(data))
        return regrade("run", CONFIGS / spec, *SMALL, *settings, "--store", store, "--json")


def rows(store: Path, **where: str) -> list[dict]:
    return [r for r in Board(store / "board").read("measurements").to_pylist() if where.items() <= r.items()]


@pytest.fixture(scope="module")
def tofu(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a trial on the real TOFU."""
    store = tmp_path_factory.mktemp("tofu")
    done = run(store, "tofu-tiny.yaml", data=data)
    assert json.loads(done.stdout)["status"] == "ok"
    return store


def test_a_trial_on_the_real_tofu_brings_every_number(tofu):
    task = TASKS["tofu/forget01"].build()
    expected = {(p.name, metric) for p in task.probes for metric in p.metrics}
    expected |= {(s.name, metric) for s in task.summaries for metric in s.metrics}
    for split in (*Split, "all"):
        for subject in ("target", "retrained", "unlearned"):
            found = rows(tofu, split=str(split), subject=subject, matching="raw")
            assert {(r["probe"], r["metric"]) for r in found} == expected
            assert all((r["value"] is None) == bool(r["reason"]) for r in found)


def test_the_rows_say_what_data_they_are_about(tofu):
    (digest,) = {r["data"] for r in rows(tofu)}
    assert digest == TASKS["tofu/forget01"].build().data
    assert {r["source"] for r in rows(tofu)} == {"mirror: tofu"}


def test_the_anchors_compare_with_themselves_as_they_should(tofu):
    """Against its own answers the retrained model has forget quality 1 and no privacy leakage, whatever it is."""
    values = {
        r["metric"]: r["value"]
        for r in rows(tofu, subject="retrained", split="all")
        if r["metric"] != "identical_outputs"
    }
    assert values["forget_quality"] == 1.0
    assert values["forget_quality_log10"] == 0.0
    assert values["privleak_min_k_40"] == 0.0
    assert values["auc_reference"] == 0.5
    (same,) = rows(tofu, subject="target", split="all", metric="identical_outputs")
    assert same["value"] == 1.0


def test_authors_are_forgotten_one_after_another_and_measured_after_each(data, tmp_path):
    run(tmp_path, "tofu-tiny.yaml", "forget=[author2, author1]", data=data)
    assert {r["subject"] for r in rows(tmp_path)} == {"target", "retrained", "unlearned", "unlearned@2"}
    (trial,) = Board(tmp_path / "board").read("trials").to_pylist()
    assert trial["steps_done"] == 4  # `steps` for each request
    after = {
        subject: {(r["probe"], r["metric"]) for r in rows(tmp_path, subject=subject, split="test", matching="raw")}
        for subject in ("unlearned", "unlearned@2")
    }
    assert after["unlearned"] == after["unlearned@2"]


TINY = {
    "model": {"tiny": {"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 512}},
    "anchors": {"epochs": 1, "lr": 1e-3, "batch_size": 64, "retain_limit": 8},
    "objective": {"name": "graddiff"},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "steps": 1,
    "batch_size": 2,
}
ROUNDED = MeasureSpec(attacks=({"name": "rtn", "bits": 4},), limit=2)


@pytest.mark.parametrize("name", ["muse/books", "wmdp/cyber", *MEMBERS])
def test_a_trial_on_every_kind_of_task_ends_with_all_of_its_numbers(name, mirrored, tmp_path):
    result = run_trial(trial({**TINY, "task": name}), Store(tmp_path), measure=ROUNDED)
    task = TASKS[name].build()
    expected = {(p.name, metric) for p in task.probes for metric in p.metrics}
    expected |= {(s.name, metric) for s in task.summaries for metric in s.metrics}
    subjects = {"target", "unlearned"} | ({"retrained"} if task.anchored is Zero.RETRAINED else set())
    assert {r["subject"] for r in result.measurements} == subjects
    for subject in subjects:
        for attack in ("none", "rtn[bits=4]"):
            wanted = (subject, attack, "raw")
            rows = [r for r in result.measurements if (r["subject"], r["attack"], r["matching"]) == wanted]
            assert {(r["probe"], r["metric"]) for r in rows} == expected
            assert all((r["value"] is None) == bool(r["reason"]) for r in rows)
    assert result.row["anchor_ids"].endswith(":chance") == (task.anchored is Zero.CHANCE)


@pytest.mark.parametrize("name", ["tofu/forget01", "muse/books", "wmdp/cyber", *MEMBERS])
def test_the_newest_official_attacks_are_carried_out_on_every_kind_of_task(name, mirrored, tmp_path):
    """No attack fails, and each writes rows of every subject at all of its points."""
    measure = MeasureSpec(limit=2, match=None)
    spec = trial(merged(TINY, {"task": name, "model": {"tiny": {"hidden": 16}}, "anchors": {"retain_limit": 80}}))
    result = run_trial(spec, Store(tmp_path), measure=measure)
    assert {r["reason"] for r in result.measurements if r["status"] == "failed"} == set()
    subjects = {r["subject"] for r in result.measurements}
    expected = {(s, a.name, p) for a in measure.attacks_for(name, Split.TEST) for p in a.points for s in subjects}
    assert {(r["subject"], r["attack"], r["point"]) for r in result.measurements} == expected


def test_news_is_forgotten_in_four_requests_and_measured_after_each(mirrored, tmp_path):
    spec = trial({**TINY, "task": "muse/news-sust", "forget": [f"sust{n}" for n in range(1, 5)]})
    result = run_trial(spec, Store(tmp_path), measure=MeasureSpec(attacks=(), limit=2))
    assert {r["subject"] for r in result.measurements} == {
        *("target", "retrained", "unlearned@1", "unlearned@2", "unlearned@3", "unlearned"),
    }
    assert result.row["steps_done"] == 4
