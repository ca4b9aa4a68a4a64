"""What every registered task promises. A new task is tested here as soon as it is registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.attacks import attack
from tasks import EXTRAS, TASKS, Probe, Split, Subset, Task, attack_name, limited
from tasks.scoring import METRICS, SUMMARIES
from tasks.task import Item, Need, ProbeKind, Style
from tests.support.published import MEMBERS

NAMES = (*TASKS, *MEMBERS)

UNREFERENCED = {"word_entropy", "ngram_entropy", "repetition"}
"""Metrics of generated text that do not depend on the reference."""

DIGESTS = """
import json, sys
from tasks import TASKS
from tasks.task import examples_digest
built = {name: TASKS[name].build() for name in sys.argv[1:]}
print(json.dumps({
    name: [task.data, examples_digest((*task.forget_examples(), *task.retain, *task.holdout)),
           *(probe.digest for probe in task.probes)]
    for name, task in built.items()
}))
"""


@pytest.fixture(scope="module")
def built(mirror: Path) -> dict[str, Task]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REGRADE_DATA", str(mirror))
        return {name: TASKS[name].build() for name in NAMES}


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest, built: dict[str, Task]) -> Task:
    return built[request.param]


def test_it_is_registered_under_its_name(task):
    assert TASKS[task.name].name == task.name
    assert TASKS[task.name].summary
    assert task.version >= 1 and task.data
    assert "/" not in task.source, "a path is of one machine"


def test_forget_retain_and_holdout_share_no_text(task):
    assert all(task.forget.values()) and task.retain
    parts = {
        Subset.FORGET: task.forget_examples(),
        Subset.RETAIN: task.retain,
        Subset.HOLDOUT: task.holdout,
    }
    ids = [example.id for examples in parts.values() for example in examples]
    assert len(ids) == len(set(ids))
    texts = {subset: {example.prompt or example.answer for example in examples} for subset, examples in parts.items()}
    assert not texts[Subset.FORGET] & texts[Subset.RETAIN]
    assert not texts[Subset.HOLDOUT] & (texts[Subset.FORGET] | texts[Subset.RETAIN])


def test_the_splits_ask_the_same_probes_about_different_items(task):
    dev, test = ({probe.name: probe for probe in task.probes_of(split)} for split in Split)
    assert dev.keys() == test.keys()
    assert len(dev) + len(test) == len(task.probes)
    for name, probe in dev.items():
        ids = [item.id for item in (*probe.items, *test[name].items)]
        assert len(ids) == len(set(ids)), name
        assert probe.items and test[name].items, name
        settings = (
            "kind",
            "subset",
            "metrics",
            "max_new_tokens",
            "stop",
            "max_tokens",
            "max_reference_tokens",
            "needs",
        )
        assert all(getattr(probe, each) == getattr(test[name], each) for each in settings), name


def test_every_metric_exists_and_reads_the_samples_of_its_probe(task):
    for probe in task.probes:
        assert probe.metrics
        for metric in probe.metrics:
            assert METRICS[metric].kind is probe.kind, f"{probe.name}: {metric}"
        assert ("min_k_plus_plus_40" in probe.metrics) == (Need.VOCABULARY in probe.needs), probe.name


def test_every_summary_reads_probes_that_are_asked(task):
    for split in Split:
        probe_names = {probe.name for probe in task.probes_of(split)}
        names = [summary.name for summary in task.summaries]
        assert len(names) == len(set(names)) and not probe_names & set(names), "rows are told apart by these names"
        for summary in task.summaries:
            assert set(summary.probes) <= probe_names
            for metric in summary.metrics:
                assert SUMMARIES[metric].tables == len(summary.probes), f"{summary.name}: {metric}"


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
            if not set(probe.metrics) <= UNREFERENCED:
                assert all(answer.strip() for answer in item.answers)
            if not (item.style is Style.TEXT and probe.kind is ProbeKind.LOGPROB):
                assert item.prompt.strip(), f"{probe.name}: there is nothing to go on from"
            if probe.kind is ProbeKind.CHOICE:
                assert len(item.answers) > 1
                assert item.reference not in [a for i, a in enumerate(item.answers) if i != item.correct], item.id
            else:
                assert len(item.answers) == 1


def test_what_is_asked_of_the_forgotten_was_taught_and_what_is_held_out_was_not(task):
    """Teacher-forced questions are training texts word for word; running text is probed in pieces."""
    taught = {
        Subset.FORGET: task.forget_examples(),
        Subset.RETAIN: task.retain,
        Subset.HOLDOUT: task.holdout,
    }
    questions = {subset: {(e.prompt, e.answer) for e in examples} for subset, examples in taught.items()}
    running = {subset: "\n\n".join(e.answer for e in examples if not e.prompt) for subset, examples in taught.items()}

    def known(item: Item, subset: Subset) -> bool:
        if item.prompt:
            return (item.prompt, item.reference) in questions[subset]
        return item.reference in running[subset]

    for probe in task.probes:
        if probe.kind is ProbeKind.LOGPROB:
            for item in probe.items:
                assert known(item, Subset.FORGET) == (probe.subset is Subset.FORGET), f"{probe.name}: {item.id}"
                assert not (probe.subset is Subset.HOLDOUT and known(item, Subset.RETAIN)), f"{probe.name}: {item.id}"


def test_a_text_says_where_it_was_read(task):
    if task.source:
        texts = [*task.forget_examples(), *task.retain, *task.holdout, *(i for p in task.probes for i in p.items)]
        assert all(": row " in text.where for text in texts)


def test_official_attacks_are_ones_that_the_suite_carries_out(task):
    for name, attacks in TASKS[task.name].attack_sets.items():
        for split in Split:
            assert {"name": "none"} in attacks[split], f"{name}: robustness must not exceed forgetting"
            for settings in attacks[split]:
                ready = attack(settings)
                assert ready.name == attack_name(settings), "a setting at its default is left out"
                ready.check(task, split)
        assert attacks[Split.DEV] != attacks[Split.TEST], "a search must not see the attack that is reported"


def test_building_is_the_same_in_every_process(mirror):
    one_of_each = ("pocket", "tofu/forget01", "muse/news-scal", *MEMBERS)

    def start(seed: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "REGRADE_DATA": str(mirror)}
        command = [sys.executable, "-c", DIGESTS, *one_of_each]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    first, second = (process.communicate()[0] for process in (start("1"), start("2")))
    assert set(json.loads(first)) == set(one_of_each)
    assert first == second


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_adds_probes_of_both_splits_and_changes_nothing_that_is_taught(extra, built, mirrored):
    task = built["custom/letters"]
    more = EXTRAS[extra](task)
    for each in ("forget", "retain", "holdout", "knowledge", "utility", "data", "version"):
        assert getattr(more, each) == getattr(task, each)
    assert more != task
    dev, test = ({probe.name for probe in more.probes_of(split)} for split in Split)
    assert dev == test and len(dev) * 2 == len(more.probes)
    for probe in more.probes:
        assert all(METRICS[metric].kind is probe.kind for metric in probe.metrics)
    for summary in more.summaries:
        assert set(summary.probes) <= dev and set(summary.metrics) <= SUMMARIES.keys()


def test_limited_asks_the_first_items_and_is_another_probe():
    items = tuple(Item(f"q{i}", f"Question {i}?", (f"Answer {i}.",)) for i in range(5))
    probe = Probe("forget_qa", Subset.FORGET, Split.DEV, ProbeKind.LOGPROB, items, ("probability",))
    (fewer,) = limited([probe], 2)
    assert fewer.items == items[:2]
    assert fewer.digest != probe.digest
    assert limited([probe], 5) == (probe,)
    assert limited([probe], 50)[0].digest == probe.digest
