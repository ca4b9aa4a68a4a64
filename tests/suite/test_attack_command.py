"""`regrade attack`: attacks are named as in rows, and a checkpoint gets the same numbers as in its trial."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.attacks import attack
from suite.cli.attack import settings_of
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from suite.trials.run import run_trial
from tasks import TASKS
from tasks.task import attack_name
from tests.support.command import regrade
from tests.support.small import SMALL

RTN = {"name": "rtn", "bits": 4}
RELEARN = {"name": "relearn", "samples": 4, "steps": 2, "lr": 1e-3, "points": 2}


@given(
    st.sampled_from(
        [
            RTN,
            RELEARN,
            {"name": "none"},
            {"name": "rtn", "bits": 2, "per": "group", "group": 16},
            {"name": "logit_lens", "layers": (0, 1, 3)},
            {"name": "prefill", "text": "Sure, here it is"},
        ]
    ),
    st.sampled_from(["", " "]),
)
def test_an_attack_is_asked_for_by_its_name_in_rows(settings, space):
    one = attack(settings_of(f"{space}{attack_name(attack(settings).settings.changed())}{space}"))
    assert one.name == attack(settings).name
    assert one.settings == attack(settings).settings


@pytest.mark.parametrize("text", ["rtn[", "rtn[bits]", "[bits=4]", "rtn bits=4", ""])
def test_what_is_not_written_like_an_attack_is_refused(text):
    with pytest.raises(SpecError, match=r"name\[key=value"):
        settings_of(text)


def test_a_checkpoint_by_itself_recovers_what_it_does_in_its_trial(warm_store, tmp_path):
    """The same knowledge after each attack and, with its anchors, the same excess recovery."""
    shutil.copytree(warm_store, tmp_path / "store")
    store = Store(tmp_path / "store")
    spec = trial(merged(SMALL, {"steps": 2}))
    result = run_trial(spec, store, measure=MeasureSpec(attacks=(RTN, RELEARN), limit=4, match=None))
    both = prepare_anchors(spec, TASKS["pocket"].build(), store.stages, RuntimeSpec())
    (unlearned,) = (store.root / "stages" / "unlearn").glob("*-*/final")
    words = ["--task", "pocket", "--template", "bare", "--limit", 4, "--store", tmp_path / "other", "--json"]
    words += ["--target", both.target.checkpoint.path, "--retrained", both.retrained.checkpoint.path]
    words += ["--attack", "rtn[bits=4]", "--attack", "relearn[lr=0.001,points=2,samples=4,steps=2]"]
    found = json.loads(regrade("attack", unlearned, *words).stdout)

    def numbers(rows):
        return {(r["attack"], r["point"], r["probe"], r["metric"]): r["value"] for r in rows if r["headline"]}

    assert numbers(found["measurements"]) == numbers(r for r in result.measurements if r["subject"] == "unlearned")
    recovery = result.headlines("test").recovery
    assert found["excess_recovery"] == {
        name: {"value": e.value, "stderr": e.stderr, "reason": e.reason} for name, e in recovery.items()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attack", "rtm[bits=4]"], "Did you mean rtn"),
        (["--attack", "rtn[bits=1]"], "bits"),
        (["--attack", "merge[share=0.5]"], "target"),
        (["--attacks", "pocket-0"], "pocket-1"),
        (["--attack", "relearn[samples=999,steps=1,lr=0.1]"], "520 forget texts"),
        (["--split", "tset"], "split"),
    ],
)
def test_what_is_asked_wrongly_ends_in_2(warm_store, tmp_path, words, message):
    (folder,) = (warm_store / "stages" / "target").glob("*-*")
    fixed = ["--task", "pocket", "--template", "bare", "--store", tmp_path]
    assert message in regrade("attack", folder, *fixed, *words, code=2).stderr
