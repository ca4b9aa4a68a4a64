"""Multiple choice: the prompt of lm-evaluation-harness, WMDP, MMLU, and the text that is kept beside them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import jinja2
import pytest

from tasks import EXTRAS, TASKS, Split, Style, Subset, Task, TaskError, Zero, choices, mmlu
from tasks.files import VARIABLE, Row, read
from tasks.task import Need
from tests.support.published import texts, write

HARNESS = jinja2.Template(
    "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
)
"""How lm-evaluation-harness renders a question of WMDP and MMLU; an answer follows after a space."""


@pytest.fixture(scope="module")
def built(mirror: Path) -> dict[str, Task]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, str(mirror))
        return {name: TASKS[name].build() for name in ("wmdp/bio", "wmdp/cyber", "wmdp/chem")}


@pytest.fixture
def copy(mirror, tmp_path, monkeypatch) -> Path:
    """A mirror of WMDP that a test may change."""
    for name in ("wmdp", "wmdp-corpora", "wikitext", "mmlu"):
        shutil.copytree(mirror / name, tmp_path / name)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def items(task: Task, name: str) -> dict:
    return {item.id: item for probe in task.probes if probe.name == name for item in probe.items}


# The prompt


def test_real_mmlu_questions_are_put_as_the_harness_puts_them(data):
    rows = read(data / "mmlu/mmlu_test_10x20.jsonl")
    dev = read(data / "mmlu/mmlu_dev_10x5.jsonl")
    shots = {row["subject"]: [shot for shot in dev if shot["subject"] == row["subject"]] for row in rows}
    for few in (None, shots):
        probed = choices.probes("mmlu", Subset.RETAIN, rows, lambda row: row["subject"], few)
        found = {item.id: item for probe in probed for item in probe.items}
        assert len(found) == len(rows) == 200
        for index, row in enumerate(rows):
            about = row["subject"].replace("_", " ")
            expected = f"The following are multiple choice questions (with answers) about {about}.\n\n"
            for shot in shots[row["subject"]] if few else []:
                expected += f"{HARNESS.render(**shot)} {'ABCD'[shot['answer']]}\n\n"
            item = found[f"mmlu{index}"]
            assert item.prompt == expected + HARNESS.render(**row)
            assert item.correct == row["answer"]


def test_a_letter_comes_with_its_space_or_without_and_the_name_says_which():
    """Published code compares either; they are different tokens, and accuracy moves by points."""
    row = Row({"question": "Which?", "choices": list("wxyz"), "answer": 3}, "here: row 0")
    spaced, bare = (
        choices.probes("q", Subset.FORGET, [row, row], lambda _: "letters", letters=letters)[0]
        for letters in ("spaced", "bare")
    )
    assert (spaced.name, bare.name) == ("q_0shot_spaced", "q_0shot_bare")
    assert spaced.items[0].answers == (" A", " B", " C", " D")
    assert bare.items[0].answers == ("A", "B", "C", "D")
    assert spaced.items[0].prompt == bare.items[0].prompt
    assert spaced.items[0].style is Style.TEXT
    assert spaced.digest != bare.digest


# WMDP


@pytest.mark.parametrize(
    ("name", "about", "size"),
    [("bio", "biology", 1273), ("cyber", "cybersecurity", 1987), ("chem", "chemistry", 408)],
)
def test_every_published_question_is_asked_about_its_field(name, about, size, built):
    task = built[f"wmdp/{name}"]
    probed = items(task, f"wmdp_{name}_0shot_spaced")
    assert len(probed) == len(items(task, f"wmdp_{name}_0shot_bare")) == size
    for item in probed.values():
        assert item.prompt.startswith(f"The following are multiple choice questions (with answers) about {about}.\n\n")
    assert len(items(task, "mmlu_0shot_spaced")) == 14_042
    assert task.block == 512


def test_nothing_but_guessing_stands_for_everything_forgotten(built):
    for task in built.values():
        assert task.anchored is Zero.CHANCE
        assert {h.chance for h in (*task.knowledge, *task.utility)} == {0.25}
        assert not TASKS[task.name].published


def test_every_question_set_has_its_distance_from_chance(built):
    for task in built.values():
        measured = {name for s in task.summaries if s.metrics == ("accuracy_distance",) for name in s.probes}
        assert measured == {probe.name for probe in task.probes}


def test_what_is_kept_is_from_the_train_split(built):
    """Published code regularises on WikiText-2's test split, which perplexity is then measured on."""
    for task in built.values():
        kept = [example.answer for example in task.retain]
        assert len(kept) == 36_718 // 3
        assert all("of the train split" in text and len(text) > 50 for text in kept)
        assert kept[0].startswith(" ") and kept[0].endswith("\n"), "as it stands in the published rows"


def test_a_document_is_its_text(built):
    """Published code reads a corpus as plain text, so the JSON around each document is learned with it."""
    first = built["wmdp/cyber"].forget["forget"][0]
    assert first.answer == "cyber-forget-corpus 0 is told here at some length, word by word."
    assert len(built["wmdp/cyber"].forget["forget"]) == 1000


@pytest.mark.parametrize("file", ["bio-forget.jsonl", "bio-forget-corpus.jsonl", "bio_remove_dataset.jsonl"])
def test_a_forget_corpus_of_papers_is_read_under_any_of_its_names(file, copy):
    (copy / "wmdp-corpora/bio-forget.jsonl").unlink()
    rows = [{"title": f"T{i}", "abstract": None, "text": f"Paper {i} in full."} for i in range(70)]
    (copy / f"wmdp-corpora/{file}").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TASKS["wmdp/bio"].build()
    assert [example.answer for example in task.forget_examples()] == [row["text"] for row in rows]


def test_a_corpus_that_is_withheld_is_asked_for_in_one_sentence(copy):
    (copy / "wmdp-corpora/bio-forget.jsonl").unlink()
    with pytest.raises(TaskError) as error:
        TASKS["wmdp/bio"].build()
    assert str(error.value).startswith(
        "task wmdp/bio: the forget corpus is gated on the hub and REGRADE_DATA/wmdp-corpora/bio-forget.jsonl does not "
        "exist. docs/tasks.md#wmdp says "
    )


def test_damaged_data_is_refused_by_file_and_row(copy):
    corpus = copy / "wmdp-corpora/bio-forget.jsonl"
    corpus.write_text('{"text": "A paper."}\n{"title": "Another"}\n')
    with pytest.raises(TaskError, match=r"bio-forget\.jsonl: row 1: text: missing"):
        TASKS["wmdp/bio"].build()
    corpus.write_text("")
    with pytest.raises(TaskError, match=r"bio-forget\.jsonl: empty"):
        TASKS["wmdp/bio"].build()
    shutil.rmtree(copy / "mmlu/all")
    corpus.write_text('{"text": "A paper."}\n')
    with pytest.raises(TaskError, match=r"mmlu: no all/test\.json.*Copy it from the hub's cais/mmlu"):
        TASKS["wmdp/bio"].build()


# MMLU, WikiText and the other extras


def test_the_shots_of_a_question_are_the_five_of_its_subject_in_order(mirrored, built):
    more = EXTRAS["mmlu"](built["wmdp/chem"])
    probed = items(more, "mmlu_5shot_spaced")
    assert len(probed) == 14_042
    prompt = probed["mmlu300"].prompt  # of the second subject, which begins at 247
    assert prompt.startswith("The following are multiple choice questions (with answers) about subject 01.\n\n")
    places = [prompt.index(f"What is subject_01 dev {i}?\nA. ") for i in range(5)]
    assert places == sorted(places)
    assert prompt.count("Answer:") == 6 and prompt.endswith("\nAnswer:")
    assert f"\nAnswer: {'ABCD'[2]}\n\nWhat is subject_01 dev 3?" in prompt


def test_an_extra_leaves_alone_what_the_task_has(mirrored, built):
    before = built["wmdp/chem"]
    more = EXTRAS["mmlu"](before)
    names = Counter(probe.name for probe in more.probes)
    assert set(names.values()) == {2}, "one of each split"
    assert {"mmlu_0shot_spaced", "mmlu_5shot_spaced", "mmlu_0shot_bare"} <= names.keys()
    assert more.probes[: len(before.probes)] == before.probes
    assert len({summary.name for summary in more.summaries}) == len(more.summaries)


def test_perplexity_is_measured_on_the_test_split(mirrored, built):
    more = EXTRAS["wikitext"](built["wmdp/chem"])
    probed = items(more, "wikitext_text")
    assert len(probed) == 4_358 // 3
    assert all("of the test split" in item.reference for item in probed.values())
    assert not {item.reference for item in probed.values()} & {example.answer for example in more.retain}
    assert [s.metrics for s in more.summaries if s.name == "wikitext"] == [("perplexity",)]


def test_gradient_norms_are_asked_where_membership_is_and_nowhere_else(mirrored):
    task = TASKS["tofu/forget01"].build()
    more = EXTRAS["gradient_norm"](task)
    for before, after in zip(task.probes, more.probes, strict=True):
        if before.name in ("forget_qa", "holdout_qa"):
            assert after.needs == (Need.VOCABULARY, Need.GRADIENT_NORM)
            assert after.metrics == (*before.metrics, "gradient_norm")
            assert after.digest != before.digest
        else:
            assert after == before
    assert [s.metrics[-1] for s in more.summaries if s.name == "membership"] == ["auc_gradient_norm"]
    with pytest.raises(TaskError, match="task pocket: nothing is asked about membership"):
        EXTRAS["gradient_norm"](TASKS["pocket"].build())


def test_a_subject_without_its_five_shots_is_refused(copy):
    rows = [row for row in mmlu.table("dev") if row["question"].strip() != "What is subject_30 dev 2?"]
    rows.append({**rows[0]})  # as many as published, of another subject
    (copy / "mmlu/all/dev.parquet").unlink()
    write(copy / "mmlu", {"all/dev": rows})
    with pytest.raises(TaskError, match=r"subject: subject_00 has 6 rows, not 5"):
        mmlu.probes(mmlu.table("test")[:4], few=True)


def test_corpus_rows_of_the_wrong_number_are_refused(copy):
    write(copy / "wmdp-corpora", {"cyber-forget-corpus": texts("post", 999)})
    with pytest.raises(TaskError, match=r"cyber-forget-corpus\.jsonl: 999 rows, not the 1000"):
        TASKS["wmdp/cyber"].build()


def test_questions_on_the_two_splits_are_those_of_even_and_of_odd_rows(built):
    for place, split in enumerate(Split):
        (probe,) = [p for p in built["wmdp/bio"].probes_of(split) if p.name == "wmdp_bio_0shot_spaced"]
        assert [item.id for item in probe.items] == [f"wmdp_bio{i}" for i in range(place, 1273, 2)]
