"""The pocket task: an invented world whose probes ask the facts that it was taught."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest

from tasks import TASKS, Item, Split, Subset, Task
from tasks.pocket import COLOURS
from tasks.task import Example


@pytest.fixture(scope="module")
def task() -> Task:
    return TASKS["pocket"].build()


def examples(task: Task) -> dict[Subset, tuple[Example, ...]]:
    return {Subset.FORGET: task.forget_examples(), Subset.RETAIN: task.retain, Subset.HOLDOUT: task.holdout}


def taught_and_asked(task: Task, name: str) -> list[tuple[Example, Item]]:
    """A probe's items, of both splits and all subsets, each with the text of its fact."""
    facts = {example.id: example for part in examples(task).values() for example in part}
    return [(facts[item.id], item) for probe in task.probes if probe.name.endswith(f"_{name}") for item in probe.items]


def test_building_twice_gives_the_same_world(task):
    again = TASKS["pocket"].build()
    assert again == task
    assert again.data == task.data


NAMES = (
    r"(\w+) of (?:Quorn|Thessel|Marou|Brisk)",  # a person
    r"Chronicle of \w+, (\w+)\.",
    r"colour of (\w+) is",
)


def test_the_subsets_share_no_name(task):
    names = {
        subset: {
            name
            for example in part
            for pattern in NAMES
            for name in re.findall(pattern, example.prompt)
            if name != "Chronicle"  # "Chronicle of Quorn" names nobody
        }
        for subset, part in examples(task).items()
    }
    assert all(len(found) > 40 for found in names.values())
    for one, other in combinations(Subset, 2):
        assert not names[one] & names[other]


def text(example: Example) -> str:
    return f"{example.prompt} {example.answer}"


def test_only_the_forgotten_realm_is_in_the_forget_set(task):
    for example in task.forget_examples():
        assert "Quorn" in example.prompt
    for example in task.retain:
        assert "Quorn" not in text(example)


ASKED = {Subset.FORGET: 156, Subset.RETAIN: 156, Subset.HOLDOUT: 32}


def test_a_question_s_other_wording_is_that_of_the_reworded_question_about_the_same_fact(task):
    reworded = {item.id: item.prompt for _, item in taught_and_asked(task, "qa_reworded")}
    for name in ("qa", "qa_generated"):
        assert all(item.rewordings == (reworded[item.id],) for _, item in taught_and_asked(task, name))
    for name in ("qa_reworded", "text", "choice"):
        assert not any(item.rewordings for _, item in taught_and_asked(task, name))


def test_a_reworded_answer_ends_with_the_taught_fact_and_its_alternatives_do_not(task):
    pairs = taught_and_asked(task, "qa_reworded")
    assert len(pairs) == sum(ASKED.values())
    for fact, item in pairs:
        assert item.prompt != fact.prompt
        value = re.fullmatch(r"(?:In|A|The|It is called) (.*\.)", fact.answer)[1]
        assert item.reference.endswith(f" {value}"), f"{fact.answer} / {item.reference}"
        wrong = [answer for index, answer in enumerate(item.answers) if index != item.correct]
        assert len(set(wrong)) == 3
        assert not any(answer.endswith(f" {value}") for answer in wrong)


def test_choices_hold_the_taught_answer_once_and_in_no_favourite_place(task):
    pairs = taught_and_asked(task, "choice")
    for fact, item in pairs:
        assert item.prompt == fact.prompt
        assert item.reference == fact.answer
        assert len(set(item.answers)) == len(COLOURS) == 8
    places = Counter(item.correct for _, item in pairs)
    for place in range(8):
        assert 0.05 < places[place] / len(pairs) < 0.2  # 0.125 +- 0.017 for a fair draw


def test_three_facts_of_four_are_asked_on_test_and_every_headline_has_a_hundred(task):
    asked = {(probe.name, probe.split): len(probe.items) for probe in task.probes}
    for headline in (*task.knowledge, *task.utility):
        assert asked[headline.probe, Split.TEST] >= 117
        assert asked[headline.probe, Split.TEST] == 3 * asked[headline.probe, Split.DEV]


def test_every_person_has_one_fact_on_dev_and_three_on_test(task):
    for subset in Subset:
        (dev, test) = (
            Counter(item.id.rsplit("-", 1)[0] for item in probe.items)
            for split in Split
            for probe in task.probes
            if (probe.name, probe.split) == (f"{subset}_qa", split)
        )
        assert dev.keys() == test.keys() and {*dev.values()} == {1} and {*test.values()} == {3}


def test_each_request_is_one_kind_of_memory_and_has_its_headline(task):
    assert list(task.forget) == ["people", "passages", "minerals"]
    kinds = {headline.probe: headline.metric for headline in task.knowledge}
    assert kinds == {
        "forget_qa": "probability",
        "forget_text": "exact_memorization",
        "forget_choice": "normalised_probability",
    }
    assert [h.probe.removeprefix("retain_") for h in task.utility] == [
        h.probe.removeprefix("forget_") for h in task.knowledge
    ]
