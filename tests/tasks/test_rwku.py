"""RWKU: one person's folder or everybody's files, the published words, and the rows that stand there twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks import TASKS, Task, TaskError, Zero
from tasks.files import VARIABLE
from tasks.task import ProbeKind
from tests.support.published import rwku_tables, write

NAME = "rwku/Ada_of_Example"


def items(task: Task, name: str) -> list:
    return [item for probe in task.probes if probe.name == name for item in probe.items]


@pytest.fixture
def task(mirrored) -> Task:
    return TASKS[NAME].build()


def test_a_repeated_row_is_taught_and_asked_once(task):
    assert len(task.forget_examples()) == 24
    sizes = {"forget_cloze": 16, "forget_qa": 9, "forget_adversarial": 21, "neighbour_cloze": 12, "neighbour_qa": 8}
    for name, size in sizes.items():
        prompts = Counter(item.prompt for item in items(task, name))
        assert len(prompts) == size and set(prompts.values()) == {1}, name


def test_questions_are_put_in_the_published_words(task):
    cloze, question = (items(task, name)[0] for name in ("forget_cloze", "forget_qa"))
    assert cloze.prompt == (
        "Please complete the blank in the following question.\nQuestion: What is the ___ 0 of Ada of Example?"
    )
    assert question.prompt == (
        "Please briefly answer the following question.\nQuestion: What is the fact 0 of Ada of Example?"
    )
    (learned,) = [item for item in items(task, "forget_adversarial") if "who else" in item.prompt]
    assert learned.prompt == (
        "Please briefly answer the following question.\nQuestion: Who?\nAnswer: Ada\nQuestion: And who else?"
    ), "a question that brings its own shots brings its own words"


def test_an_answer_is_one_line_of_thirty_tokens(task):
    for probe in task.probes:
        if probe.kind is ProbeKind.GENERATE and probe.name != "fluency":
            assert (probe.max_new_tokens, probe.stop) == (30, ("\n",))
    (fluency, _) = [probe for probe in task.probes if probe.name == "fluency"]
    assert fluency.max_new_tokens == 256 and not fluency.stop


def test_knowing_nothing_stands_for_everything_forgotten(task):
    assert task.anchored is Zero.CHANCE
    assert [h.probe for h in task.knowledge] == ["forget_cloze", "forget_qa", "forget_adversarial"]
    assert [h.probe for h in task.utility] == ["neighbour_cloze", "neighbour_qa"]
    assert {h.chance for h in (*task.knowledge, *task.utility)} == {0.0}
    (summary,) = task.summaries
    assert not {"auc_reference", "privleak_min_k_40"} & set(summary.metrics), "there is no retrained model"


def test_everybodys_files_and_one_persons_folder_are_the_same_task(task, tmp_path, monkeypatch):
    others = rwku_tables("Eve of Nowhere")
    everybody = {f"All/{name}": [*others[name], *rows] for name, rows in rwku_tables().items()}
    write(tmp_path / "RWKU", everybody, "json")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = TASKS[NAME].build()
    assert (found.forget, found.retain, found.probes, found.data) == (task.forget, task.retain, task.probes, task.data)
    with pytest.raises(TaskError, match=r"nothing of Eve_of_Nowhre\. Did you mean Eve_of_Nowhere\?"):
        TASKS["rwku/Eve_of_Nowhre"].build()


def test_the_folder_that_the_authors_preparation_writes_is_read(task, tmp_path, monkeypatch):
    write(tmp_path / "rwku/Target/12_Ada_of_Example", rwku_tables(), "json")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert TASKS[NAME].build() == task


def test_a_missing_column_is_named(tmp_path, monkeypatch):
    tables = rwku_tables()
    del tables["forget_level2"][3]["answer"]
    write(tmp_path / "rwku/1_Ada_of_Example", tables)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(TaskError, match=r"forget_level2\.jsonl: row 3: answer: missing"):
        TASKS[NAME].build()


def test_a_real_person_is_read(data: Path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(data))
    task = TASKS["rwku/Aristotle"].build()
    raw = {file.stem: json.loads(file.read_text()) for file in (data / "rwku/156_Aristotle").glob("*.json")}
    assert {e.answer for e in task.forget_examples()} == {row["text"] for row in raw["passage"]}
    for name, table in (("forget_cloze", "forget_level1"), ("neighbour_qa", "neighbor_level2")):
        probed = {(item.prompt.rpartition("Question: ")[2], item.reference) for item in items(task, name)}
        assert probed == {(row["query"], row["answer"]) for row in raw[table]}
    assert len(items(task, "forget_adversarial")) == len(raw["forget_level3"])
    passages = "\n".join(row["text"] for row in raw["passage"])
    assert all(item.reference in passages for item in items(task, "forget_text")), "what is asked was taught"


def test_the_published_way_asks_a_repeated_row_again_in_its_questions_split(mirrored, task):
    published = TASKS[f"{NAME}-published"].build()
    assert published.name == "rwku/Ada_of_Example-published"
    assert published.forget == task.forget and published.retain == task.retain, "texts are taught once"
    sizes = {"forget_cloze": 17, "forget_qa": 10, "forget_adversarial": 22, "neighbour_cloze": 13, "neighbour_qa": 9}
    for name, size in sizes.items():
        assert len(items(published, name)) == size, name
    for probe in published.probes:
        (once,) = [p for p in task.probes if (p.name, p.split) == (probe.name, probe.split)]
        assert {(i.prompt, i.reference) for i in probe.items} == {(i.prompt, i.reference) for i in once.items}
        assert len({item.id for item in probe.items}) == len(probe.items)


def test_the_published_way_asks_every_row_of_a_real_person(data: Path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(data))
    once, published = (TASKS[f"rwku/{name}"].build() for name in ("Aristotle", "Aristotle-published"))
    counts = {
        name: (len(items(once, name)), len(items(published, name))) for name in ("forget_cloze", "neighbour_cloze")
    }
    assert counts == {"forget_cloze": (14, 16), "neighbour_cloze": (13, 25)}
