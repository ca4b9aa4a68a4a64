"""TOFU: the tables, the probes, and messages about data that is missing or not as published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import TASKS, Split, Subset, Task, TaskError
from tasks.files import VARIABLE, Source
from tasks.task import ProbeKind
from tasks.tofu import LIMIT
from tests.support.published import tofu_tables, write_tofu

PUBLISHED = Path(os.environ.get(VARIABLE, "")) / "tofu"
with_published_files = pytest.mark.skipif(
    not (os.environ.get(VARIABLE) and PUBLISHED.is_dir()), reason=f"{VARIABLE} names no directory with tofu/"
)
FRACTIONS = (1, 5, 10)


def build(percent: int, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setenv(VARIABLE, str(mirror))
    return TASKS[f"tofu/forget{percent:02}"].build()


def published_rows(name: str) -> list[dict]:
    text = (PUBLISHED / f"{name}.json").read_text()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def check_shape(task: Task, percent: int) -> None:
    """Sizes and alignment that hold for the published data."""
    rows = 40 * percent
    assert len(task.forget_examples()) == len(task.holdout) == rows
    assert len(task.retain) == 4000 - rows
    assert list(task.forget) == [f"author{i + 1}" for i in range(rows // 20)]
    assert {len(questions) for questions in task.forget.values()} == {20}
    sizes = {probe.name: 0 for probe in task.probes}
    for probe in task.probes:
        sizes[probe.name] += len(probe.items)
    for name in ("forget_qa", "forget_qa_generated", "forget_paraphrase", "holdout_qa"):
        assert sizes[name] == rows
    for name in ("retain_qa", "retain_qa_generated", "retain_paraphrase"):
        assert sizes[name] == LIMIT
    assert sizes["real_authors_choice"] == sizes["real_authors_generated"] == 100
    assert sizes["world_facts_choice"] == sizes["world_facts_generated"] == 117
    for probe in task.probes:
        if probe.kind is ProbeKind.CHOICE:
            answers = 6 if probe.name.endswith("_paraphrase") else 4
            assert {len(set(item.answers)) for item in probe.items} == {answers}, probe.name
        elif probe.kind is ProbeKind.GENERATE:
            assert probe.max_new_tokens == 200


@pytest.mark.parametrize("percent", FRACTIONS)
def test_the_published_layout_gives_the_published_sizes(percent, mirror, monkeypatch):
    check_shape(build(percent, mirror, monkeypatch), percent)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folders"])
def test_every_form_of_a_mirror_is_the_same_task(form, mirror, write_tofu, monkeypatch):
    assert build(1, write_tofu(form), monkeypatch) == build(1, mirror, monkeypatch)


def test_the_paraphrase_is_the_right_answer_to_the_question_as_trained(mirror, monkeypatch):
    task = build(1, mirror, monkeypatch)
    trained = {example.prompt: example.answer for example in task.forget_examples()}
    for probe in task.probes:
        if probe.name == "forget_paraphrase":
            for item in probe.items:
                right, *wrong = item.answers
                assert item.correct == 0
                assert right == f"Truly, {trained[item.prompt]}"
                assert all(answer.startswith(f"Not {trained[item.prompt]}") for answer in wrong)


def test_version_two_asks_the_questions_of_version_one(mirror, monkeypatch):
    """Digests of version 1, on this mirror: only the membership probes need more from the model."""
    task = build(1, mirror, monkeypatch)
    assert task.version == 2
    assert task.data.startswith("ff0cc3c9a39481d7")
    found = {probe.name: probe.digest[:16] for probe in task.probes_of(Split.DEV)}
    assert found.pop("forget_qa") != "9f867fc1790d4555" and found.pop("holdout_qa") != "243078dfb001d80b"
    assert found == {
        "forget_qa_generated": "e7eea2622aae401e",
        "forget_paraphrase": "ea78fafb22e22292",
        "retain_qa": "703a892cb8f4cc9c",
        "retain_qa_generated": "5649f7c333cba842",
        "retain_paraphrase": "1f50cd47f76337d4",
        "real_authors_choice": "9ab9f7cc36cde26f",
        "real_authors_generated": "25fced5dc276234d",
        "world_facts_choice": "e528ee249be274f8",
        "world_facts_generated": "fc49885982311db6",
    }


def test_questions_about_authors_come_with_the_published_rewording_and_without_it_are_the_same_task(
    mirror, write_tofu, monkeypatch
):
    task = build(1, mirror, monkeypatch)
    for probe in task.probes:
        published = probe.name.startswith(("forget", "retain"))
        for item in probe.items:
            assert item.rewordings == ((f"Say, {item.prompt}",) if published else ())
    bare = [
        {key: value for key, value in row.items() if key != "paraphrased_question"}
        for row in tofu_tables([1])["forget01_perturbed"]
    ]
    without = build(1, write_tofu(forget01_perturbed=bare), monkeypatch)
    assert not any(i.rewordings for p in without.probes if p.subset is Subset.FORGET for i in p.items)
    assert without == task and without.data == task.data
    assert [probe.digest for probe in without.probes] == [probe.digest for probe in task.probes]


def test_model_utility_reads_its_seven_tables_in_order(mirror, monkeypatch):
    """The nine published numbers are identified by position: retain, real authors, world facts."""
    summaries = {summary.name: summary for summary in build(1, mirror, monkeypatch).summaries}
    assert summaries["model_utility"].probes == (
        "retain_qa", "retain_qa_generated", "retain_paraphrase", "real_authors_choice", "real_authors_generated",
        "world_facts_choice", "world_facts_generated",
    )  # fmt: skip
    assert summaries["membership"].probes == ("forget_qa", "holdout_qa"), "forgotten texts first"
    assert summaries["forget_quality"].probes == ("forget_paraphrase",)


@pytest.mark.parametrize("percent", FRACTIONS)
def test_the_retrained_checkpoint_is_the_one_without_this_forget_set(percent):
    published = TASKS[f"tofu/forget{percent:02}"].published
    assert published["Llama-3.2-1B-Instruct"] == (
        "open-unlearning/tofu_Llama-3.2-1B-Instruct_full",
        f"open-unlearning/tofu_Llama-3.2-1B-Instruct_retain{ {1: 99, 5: 95, 10: 90}[percent] }",
    )


def test_even_rows_are_dev_and_odd_rows_are_test(mirror, monkeypatch):
    task = build(1, mirror, monkeypatch)
    rows = {example.prompt: index for index, example in enumerate(task.forget_examples())}
    probed = {split: [rows[item.prompt] for item in task.probes_of(split)[0].items] for split in Split}
    assert probed[Split.DEV] == list(range(0, 40, 2))
    assert probed[Split.TEST] == list(range(1, 40, 2))


def test_the_first_retain_texts_are_the_ones_that_are_asked(mirror, monkeypatch):
    """So a run with only the first n training texts and n questions is asked about what it was trained on."""
    for percent in FRACTIONS:
        task = build(percent, mirror, monkeypatch)
        probed = {item.prompt for probe in task.probes if probe.name == "retain_qa" for item in probe.items}
        assert probed == {example.prompt for example in task.retain[:LIMIT]}


def test_the_digest_follows_the_content(mirror, write_tofu, monkeypatch):
    before = build(1, mirror, monkeypatch)
    facts = [{"question": f"What of poet {i}?", "answer": f"It is poet {i}, truly."} for i in range(100)]
    wrong = ["Not so.", "Never.", "No."]
    same = [{**fact, "perturbed_answer": [f"Not {fact['answer']} ({i})" for i in range(3)]} for fact in facts]
    assert build(1, write_tofu("json", real_authors_perturbed=same), monkeypatch).data == before.data
    other = [*same[:-1], {**same[-1], "perturbed_answer": wrong}]
    assert build(1, write_tofu("jsonl", real_authors_perturbed=other), monkeypatch).data != before.data


def test_reading_leaves_nothing_beside_the_data(write_tofu, monkeypatch):
    mirror = write_tofu()
    before = {path: path.stat().st_mtime_ns for path in mirror.rglob("*")}
    build(1, mirror, monkeypatch)
    assert {path: path.stat().st_mtime_ns for path in mirror.rglob("*")} == before


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def _edited(row: int, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        lines = _lines(path)
        lines[row] = json.dumps(change(json.loads(lines[row]))) + "\n"
        path.write_text("".join(lines))

    return edit


def _without(field: str) -> Callable[[dict], dict]:
    return lambda row: {key: value for key, value in row.items() if key != field}


@pytest.mark.parametrize(
    ("table", "damage", "complaint"),
    [
        ("forget01", Path.unlink, r"tofu: no forget01\.json, .*Copy it from the hub's locuslab/TOFU"),
        ("forget01", lambda path: path.write_text(""), r"forget01\.json: empty; forget01 has 40 rows"),
        ("holdout01", lambda path: path.write_text("[]"), r"holdout01\.json: empty; holdout01 has 40 rows"),
        (
            "retain99",
            lambda path: path.write_text("".join(_lines(path)[:-1])),
            r"retain99\.json: 3959 rows, not the 3960",
        ),
        (
            "retain99",
            lambda path: path.write_text("".join([*_lines(path)[:7], '{"question": "What', *_lines(path)[7:]])),
            r"retain99\.json: not readable as json: .*row 7",
        ),
        ("forget01", lambda path: path.write_bytes(b"\xff\xfe\x00"), r"forget01\.json: not readable as json"),
        ("forget01", _edited(5, _without("answer")), r"forget01\.json: row 5: answer: missing"),
        ("forget01", _edited(5, lambda row: {**row, "answer": " "}), r"row 5: answer: text is expected, not ' '"),
        (
            "forget01_perturbed",
            _edited(3, _without("paraphrased_answer")),
            r"forget01_perturbed\.json: row 3: paraphrased_answer: missing",
        ),
        (
            "retain_perturbed",
            _edited(9, lambda row: {**row, "perturbed_answer": row["perturbed_answer"][:4]}),
            r"retain_perturbed\.json: row 9: perturbed_answer: a list of 5 texts is expected",
        ),
        (
            "world_facts_perturbed",
            _edited(2, _without("perturbed_answer")),
            r"world_facts_perturbed\.json: row 2: perturbed_answer: missing",
        ),
        (
            "forget01_perturbed",
            _edited(4, lambda row: {**row, "question": "Who else?"}),
            r"forget01_perturbed: row 4: question: not that of forget01, row 4",
        ),
    ],
)
def test_bad_data_is_refused_by_file_row_and_field(table, damage, complaint, write_tofu, monkeypatch):
    mirror = write_tofu()
    damage(mirror / "tofu" / f"{table}.json")
    with pytest.raises(TaskError, match=complaint):
        build(1, mirror, monkeypatch)


def test_damaged_parquet_is_refused(write_tofu, monkeypatch):
    mirror = write_tofu("parquet")
    (mirror / "tofu" / "forget01.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(TaskError, match=r"forget01\.parquet: not readable as parquet"):
        build(1, mirror, monkeypatch)


def test_a_directory_for_other_tasks_leaves_this_one_to_the_hub(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert Source.find("tofu", "owner/name", "main").folder is None
    assert Source.find("other", "owner/name", "main").folder == tmp_path / "other"


def test_without_files_or_network_it_says_what_to_do(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}  # read once, when the hub's client is imported
    code = "from tasks import TASKS; TASKS['tofu/forget01'].build()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    complaint = done.stderr.strip().splitlines()[-1]
    assert complaint.startswith("tasks.task.MissingDataError: locuslab/TOFU: forget01 is not in the local cache")
    assert f"Go online, or set {VARIABLE} to a directory that has the data set's files in tofu/" in complaint


@with_published_files
@pytest.mark.parametrize("percent", FRACTIONS)
def test_the_published_files_are_what_was_published(percent):
    task = TASKS[f"tofu/forget{percent:02}"].build()
    check_shape(task, percent)
    full = published_rows("full")
    texts = [*task.retain, *task.forget_examples()]
    assert [(text.prompt, text.answer) for text in texts] == [(row["question"], row["answer"]) for row in full]


@with_published_files
@pytest.mark.parametrize("percent", FRACTIONS)
def test_published_questions_are_asked_once_and_about_what_was_taught(percent):
    task = TASKS[f"tofu/forget{percent:02}"].build()
    perturbed = {row["question"]: row for row in published_rows(f"forget{percent:02}_perturbed")}
    taught = {(example.prompt, example.answer) for example in task.forget_examples()}
    for split in Split:
        for probe in task.probes_of(split):
            if probe.name == "forget_qa":
                assert {(item.prompt, item.reference) for item in probe.items} <= taught
            if probe.name == "forget_paraphrase":
                for item in probe.items:
                    row = perturbed[item.prompt]
                    assert item.answers == (row["paraphrased_answer"], *row["perturbed_answer"])
    seen = [item.prompt for probe in task.probes if probe.name == "forget_qa" for item in probe.items]
    assert sorted(seen) == sorted(perturbed)


@with_published_files
def test_no_published_held_out_question_was_taught():
    for percent in FRACTIONS:
        task = TASKS[f"tofu/forget{percent:02}"].build()
        held_out = {example.prompt for example in task.holdout}
        assert not held_out & {example.prompt for example in (*task.retain, *task.forget_examples())}
        assert all(probe.subset in Subset for probe in task.probes)


@with_published_files
@pytest.mark.parametrize("percent", FRACTIONS)
def test_every_published_rewording_stands_at_its_question(percent):
    task = TASKS[f"tofu/forget{percent:02}"].build()
    for subset, table in ((Subset.FORGET, f"forget{percent:02}_perturbed"), (Subset.RETAIN, "retain_perturbed")):
        words = {row["question"]: (row["paraphrased_question"],) for row in published_rows(table)}
        probed = [i for p in task.probes if p.name.startswith(f"{subset}_") for i in p.items]
        assert probed and all(item.rewordings == words[item.prompt] for item in probed)


def test_a_translated_mirror_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    tables = tofu_tables((1,))
    for row in tables["world_facts_perturbed"][3:4]:
        row["answer"] = "Столица 3"
    write_tofu(tmp_path, "jsonl", tables)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(TaskError, match=r"row 3: rougeL_recall of world_facts_generated.*rougeL_recall_unicode"):
        TASKS["tofu/forget01"].build()
