"""What every registered task promises. A new task is tested here as soon as it is registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.testing import TaskConformance
from tasks import EXTRAS, TASKS, Probe, Split, Subset, limited
from tasks.scoring import METRICS, SUMMARIES
from tasks.task import Item, ProbeKind
from tests.support.published import MEMBERS

NAMES = (*TASKS, *MEMBERS)

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


class TestEveryTask(TaskConformance):
    entries = tuple(TASKS[name] for name in NAMES)

    test_building_it_again_gives_the_same = None  # of one of each kind, and in another process: below

    @pytest.fixture(autouse=True)
    def _mirrored(self, mirrored: Path) -> None:
        """Its data is the mirror's."""


def test_tasks_are_registered_under_their_names():
    assert list(NAMES) == [TASKS[name].name for name in NAMES]


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
def test_an_extra_adds_probes_of_both_splits_and_changes_nothing_that_is_taught(extra, mirrored):
    task = TASKS["custom/letters"].build()
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
