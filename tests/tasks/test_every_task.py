"""What every registered task promises. A new task is tested here as soon as it is registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.attacks import attack
from tasks import TASKS, Probe, Split, Subset, Task, limited
from tasks.scoring import METRICS
from tasks.task import Item, ProbeKind

DIGESTS = """
import json
from tasks import TASKS
from tasks.task import examples_digest
built = {name: entry.build() for name, entry in TASKS.items()}
print(json.dumps({
    name: [task.data, examples_digest((*task.forget_examples(), *task.retain, *task.holdout)),
           *(probe.digest for probe in task.probes)]
    for name, task in built.items()
}))
"""


@pytest.fixture(scope="module")
def built(tofu_mirror: Path) -> dict[str, Task]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REGRADE_DATA", str(tofu_mirror))
        return {name: entry.build() for name, entry in TASKS.items()}


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest, built: dict[str, Task]) -> Task:
    return built[request.param]


def test_it_is_registered_under_its_name(task):
    assert TASKS[task.name].name == task.name
    assert TASKS[task.name].summary
    assert task.version >= 1 and task.data


def test_forget_retain_and_holdout_share_no_text(task):
    assert all(task.forget.values()) and task.retain
    parts = {
        Subset.FORGET: task.forget_examples(),
        Subset.RETAIN: task.retain,
        Subset.HOLDOUT: task.holdout,
    }
    ids = [example.id for examples in parts.values() for example in examples]
    assert len(ids) == len(set(ids))
    prompts = {subset: {example.prompt for example in examples} for subset, examples in parts.items()}
    assert not prompts[Subset.FORGET] & prompts[Subset.RETAIN]
    assert not prompts[Subset.HOLDOUT] & (prompts[Subset.FORGET] | prompts[Subset.RETAIN])


def test_the_splits_ask_the_same_probes_about_different_items(task):
    dev, test = ({probe.name: probe for probe in task.probes_of(split)} for split in Split)
    assert dev.keys() == test.keys()
    assert len(dev) + len(test) == len(task.probes)
    for name, probe in dev.items():
        ids = [item.id for item in (*probe.items, *test[name].items)]
        assert len(ids) == len(set(ids)), name
        assert probe.items and test[name].items, name
        assert (probe.kind, probe.subset, probe.metrics) == (test[name].kind, test[name].subset, test[name].metrics)


def test_every_metric_exists_and_reads_the_samples_of_its_probe(task):
    for probe in task.probes:
        assert probe.metrics
        for metric in probe.metrics:
            assert METRICS[metric].kind is probe.kind, f"{probe.name}: {metric}"


@pytest.mark.parametrize("split", list(Split))
def test_headlines_are_measured_and_point_upwards(task, split):
    probes = {probe.name: probe for probe in task.probes_of(split)}
    for headlines, subset in ((task.knowledge, Subset.FORGET), (task.utility, Subset.RETAIN)):
        assert headlines
        for headline in headlines:
            assert headline.metric in probes[headline.probe].metrics
            assert probes[headline.probe].subset is subset
            assert METRICS[headline.metric].up
            assert 0 <= headline.chance < 1


def test_items_can_be_asked(task):
    for probe in task.probes:
        for item in probe.items:
            assert item.prompt.strip() and all(answer.strip() for answer in item.answers)
            if probe.kind is ProbeKind.CHOICE:
                assert len(item.answers) > 1
                assert item.reference not in [a for i, a in enumerate(item.answers) if i != item.correct], item.id
            else:
                assert len(item.answers) == 1


def test_recall_is_asked_of_what_was_taught_and_of_nothing_held_out(task):
    """A teacher-forced probe of a subset asks that subset's own texts, word for word."""
    texts = {
        Subset.FORGET: {(example.prompt, example.answer, example.style) for example in task.forget_examples()},
        Subset.RETAIN: {(example.prompt, example.answer, example.style) for example in task.retain},
        Subset.HOLDOUT: {(example.prompt, example.answer, example.style) for example in task.holdout},
    }
    asked = [probe for probe in task.probes if probe.kind is ProbeKind.LOGPROB]
    assert {probe.subset for probe in asked} >= {Subset.FORGET, Subset.RETAIN}
    for probe in asked:
        assert {(item.prompt, item.reference, item.style) for item in probe.items} <= texts[probe.subset], probe.name


def test_official_attacks_are_ones_that_the_suite_carries_out(task):
    for name, attacks in TASKS[task.name].attack_sets.items():
        for split in Split:
            assert {"name": "none"} in attacks[split], f"{name}: robustness must not exceed forgetting"
            for settings in attacks[split]:
                ready = attack(settings)
                assert getattr(ready.settings, "samples", 0) <= len(task.forget_examples())
        assert attacks[Split.DEV] != attacks[Split.TEST], "a search must not see the attack that is reported"


def test_building_is_the_same_in_every_process(tofu_mirror):
    def digests(seed: str) -> dict[str, list[str]]:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "REGRADE_DATA": str(tofu_mirror)}
        done = subprocess.run([sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = digests("1")
    assert set(first) == set(TASKS)
    assert digests("2") == first


def test_limited_asks_the_first_items_and_is_another_probe():
    items = tuple(Item(f"q{i}", f"Question {i}?", (f"Answer {i}.",)) for i in range(5))
    probe = Probe("forget_qa", Subset.FORGET, Split.DEV, ProbeKind.LOGPROB, items, ("probability",))
    (fewer,) = limited([probe], 2)
    assert fewer.items == items[:2]
    assert fewer.digest != probe.digest
    assert limited([probe], 5) == (probe,)
    assert limited([probe], 50)[0].digest == probe.digest
