"""What every task must be: its texts, its probes, its headlines, its official attacks."""

from __future__ import annotations

import pytest

from suite.attacks import attack
from suite.testing.base import Conformance
from tasks.scoring import METRICS, SUMMARIES
from tasks.task import Example, Item, Need, ProbeKind, Split, Style, Subset, Task, TaskEntry, attack_name

UNREFERENCED = {"word_entropy", "ngram_entropy", "repetition"}
"""Metrics of generated text that do not depend on the reference."""


class TaskConformance(Conformance):
    """Tests of a task: `entry = ENTRY`, a `TaskEntry`. Its data has to be at hand."""

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> dict[str, Task]:
        """The tasks that were built already."""
        return {}

    @pytest.fixture
    def task(self, case: TaskEntry, built: dict[str, Task]) -> Task:
        if case.name not in built:
            built[case.name] = case.build()
        return built[case.name]

    def test_it_has_a_name_a_summary_and_a_version(self, case: TaskEntry, task: Task) -> None:
        assert case.name == task.name, f"the entry is {case.name!r} and the task that it builds {task.name!r}"
        assert case.summary, f"{case.name}: give the entry a `summary`"
        assert task.version >= 1 and task.data, f"{case.name}: `data` is a digest of its rows, `version` 1 or more"
        assert "/" not in task.source, f"{case.name}: the source {task.source} is a path, which is of one machine"

    def test_building_it_again_gives_the_same(self, case: TaskEntry, task: Task) -> None:
        again = case.build()
        assert again.data == task.data and [p.digest for p in again.probes] == [p.digest for p in task.probes], (
            f"{case.name}: another build has other rows. Draw nothing, and iterate over no set"
        )

    def test_forget_retain_and_holdout_share_no_text(self, task: Task) -> None:
        assert all(task.forget.values()) and task.retain, f"{task.name}: there is nothing to forget, or to retain"
        parts = examples(task)
        ids = [example.id for each in parts.values() for example in each]
        assert len(ids) == len(set(ids)), f"{task.name}: two texts have one id"
        texts = {subset: {example.prompt or example.answer for example in each} for subset, each in parts.items()}
        assert not texts[Subset.FORGET] & texts[Subset.RETAIN]
        assert not texts[Subset.HOLDOUT] & (texts[Subset.FORGET] | texts[Subset.RETAIN])

    def test_the_splits_ask_the_same_probes_about_different_items(self, task: Task) -> None:
        dev, test = ({probe.name: probe for probe in task.probes_of(split)} for split in Split)
        assert dev.keys() == test.keys()
        assert len(dev) + len(test) == len(task.probes)
        for name, probe in dev.items():
            ids = [item.id for item in (*probe.items, *test[name].items)]
            assert len(ids) == len(set(ids)), f"{name}: dev and test share an item, or one stands twice"
            assert probe.items and test[name].items, f"{name}: there are no items in one of the splits"
            settings = "kind subset metrics max_new_tokens stop max_tokens max_reference_tokens needs".split()
            for each in settings:
                assert getattr(probe, each) == getattr(test[name], each), f"{name}: `{each}` differs from dev to test"

    def test_every_metric_exists_and_reads_the_samples_of_its_probe(self, task: Task) -> None:
        for probe in task.probes:
            assert probe.metrics, f"{probe.name} has no metrics"
            for metric in probe.metrics:
                assert metric in METRICS, f"{probe.name}: there is no metric {metric}"
                assert METRICS[metric].kind is probe.kind, f"{probe.name}: {metric} reads another kind of probe"
            needed = "min_k_plus_plus_40" in probe.metrics
            assert needed == (Need.VOCABULARY in probe.needs), f"{probe.name}: min_k_plus_plus_40 needs the vocabulary"

    def test_every_summary_reads_probes_that_are_asked(self, task: Task) -> None:
        for split in Split:
            probe_names = {probe.name for probe in task.probes_of(split)}
            names = [summary.name for summary in task.summaries]
            assert len(names) == len(set(names)) and not probe_names & set(names), "rows are told apart by these names"
            for summary in task.summaries:
                assert set(summary.probes) <= probe_names, f"{summary.name} reads a probe that is not asked"
                for metric in summary.metrics:
                    assert SUMMARIES[metric].tables == len(summary.probes), f"{summary.name}: {metric}"

    @pytest.mark.parametrize("split", list(Split))
    def test_headlines_are_measured_and_point_upwards(self, task: Task, split: Split) -> None:
        probes = {probe.name: probe for probe in task.probes_of(split)}
        for headlines, subset in ((task.knowledge, Subset.FORGET), (task.utility, Subset.RETAIN)):
            assert headlines, f"{task.name}: there is no headline about the {subset} texts"
            for headline in headlines:
                name = f"{headline.probe}/{headline.metric}"
                assert headline.metric in probes[headline.probe].metrics, f"{name} is not measured"
                assert probes[headline.probe].subset is subset, f"{name} is not about the {subset} texts"
                assert METRICS[headline.metric].up, f"{name}: a higher number has to mean that the model knows more"
                assert 0 <= headline.chance < 1, f"{name}: chance is {headline.chance}"

    def test_items_can_be_asked(self, task: Task) -> None:
        for probe in task.probes:
            for item in probe.items:
                if not set(probe.metrics) <= UNREFERENCED:
                    assert all(answer.strip() for answer in item.answers), f"{probe.name}: {item.id}: an empty answer"
                if not (item.style is Style.TEXT and probe.kind is ProbeKind.LOGPROB):
                    assert item.prompt.strip(), f"{probe.name}: {item.id}: there is nothing to go on from"
                if probe.kind is ProbeKind.CHOICE:
                    assert len(item.answers) > 1, f"{probe.name}: {item.id}: there is nothing to choose from"
                    assert item.reference not in [a for i, a in enumerate(item.answers) if i != item.correct], item.id
                else:
                    assert len(item.answers) == 1, f"{probe.name}: {item.id}: only a choice has several answers"

    def test_what_is_asked_of_the_forgotten_was_taught_and_what_is_held_out_was_not(self, task: Task) -> None:
        """Teacher-forced questions are training texts word for word; running text is probed in pieces."""
        taught = examples(task)
        questions = {subset: {(e.prompt, e.answer) for e in each} for subset, each in taught.items()}
        running = {subset: "\n\n".join(e.answer for e in each if not e.prompt) for subset, each in taught.items()}

        def known(item: Item, subset: Subset) -> bool:
            if item.prompt:
                return (item.prompt, item.reference) in questions[subset]
            return item.reference in running[subset]

        for probe, item in ((p, i) for p in task.probes if p.kind is ProbeKind.LOGPROB for i in p.items):
            assert known(item, Subset.FORGET) == (probe.subset is Subset.FORGET), f"{probe.name}: {item.id}"
            assert not (probe.subset is Subset.HOLDOUT and known(item, Subset.RETAIN)), f"{probe.name}: {item.id}"

    def test_a_text_says_where_it_was_read(self, task: Task) -> None:
        if task.source:
            texts: list[Example | Item] = [e for each in examples(task).values() for e in each]
            texts += [item for probe in task.probes for item in probe.items]
            assert all(": row " in text.where for text in texts), f"{task.name}: `where` is `file: row number`"

    def test_official_attacks_are_ones_that_the_suite_carries_out(self, case: TaskEntry, task: Task) -> None:
        for name, attacks in case.attack_sets.items():
            for split in Split:
                assert {"name": "none"} in attacks[split], f"{name}: robustness must not exceed forgetting"
                for settings in attacks[split]:
                    ready = attack(settings)
                    assert ready.name == attack_name(settings), f"{name}: leave out a setting at its default"
                    ready.check(task, split)
            assert attacks[Split.DEV] != attacks[Split.TEST], "a search must not see the attack that is reported"


def examples(task: Task) -> dict[Subset, tuple[Example, ...]]:
    """All texts, by what becomes of them."""
    return {Subset.FORGET: task.forget_examples(), Subset.RETAIN: task.retain, Subset.HOLDOUT: task.holdout}
