"""Custom tasks: default probes, what `task.yaml` adds, and messages about mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tasks import TASKS, Split, Style, Subset, Task, TaskError, Zero
from tasks.custom.task import entry
from tasks.files import VARIABLE
from tasks.task import Need, ProbeKind
from tests.support.published import letters, write

CONFIGS = Path(__file__).parents[2] / "configs"

CHOICES = [{"question": f"Q{i}?", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(6)]
PROBE = {
    "name": "forget_choice",
    "file": "probes/some",
    "subset": "forget",
    "kind": "choice",
    "metrics": ["accuracy"],
}

Build = Callable[..., Task]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """`build(head, table=rows)`: the letters with tables changed, added or (None) left out, and this `task.yaml`."""

    def build(head: dict | str | None = None, form: str = "jsonl", **changed: list | None) -> Task:
        folder = tmp_path / "custom/mine"
        tables = letters() | {name.replace("__", "/"): rows for name, rows in changed.items()}
        write(folder, {name: rows for name, rows in tables.items() if rows is not None}, form)
        if head is not None:
            (folder / "task.yaml").write_text(head if isinstance(head, str) else yaml.safe_dump(head))
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        return TASKS["custom/mine"].build()

    return build


def names(task: Task) -> set[str]:
    return {probe.name for probe in task.probes}


def probe(task: Task, name: str, split: Split = Split.DEV):
    (found,) = [probe for probe in task.probes_of(split) if probe.name == name]
    return found


# What is there by default


def test_the_texts_themselves_are_asked(build):
    task = build()
    assert names(task) == {
        "forget_qa", "forget_qa_generated", "retain_qa", "retain_qa_generated", "holdout_qa",
    }  # fmt: skip
    for subset, part in ((Subset.FORGET, task.forget_examples()), (Subset.RETAIN, task.retain)):
        both = [item for split in Split for item in probe(task, f"{subset}_qa", split).items]
        assert {(item.prompt, item.reference) for item in both} == {(e.prompt, e.answer) for e in part}
    assert [h.probe for h in task.knowledge] == ["forget_qa", "forget_qa_generated"]
    assert [s.probes for s in task.summaries] == [("forget_qa", "holdout_qa")]
    assert task.anchored is Zero.RETRAINED and task.block is None
    assert task.source == "mirror: mine"


def test_without_held_out_texts_there_is_no_membership(build):
    task = build(holdout=None)
    assert not task.summaries and not task.holdout and "holdout_qa" not in names(task)


def test_running_text_is_asked_but_not_generated(build):
    texts = {part: [{"text": f"{part} {i} goes on."} for i in range(8)] for part in ("forget", "retain")}
    task = build({"block": 64}, **texts)
    assert names(task) == {"forget_qa", "retain_qa", "holdout_qa"}
    assert [h.metric for h in (*task.knowledge, *task.utility)] == ["probability", "probability"]
    assert task.block == probe(task, "forget_qa").max_tokens == 64
    assert all((e.prompt, e.style) == ("", Style.TEXT) for e in task.forget_examples())


def test_a_question_is_asked_in_the_models_template_and_a_prompt_as_it_stands(build):
    rows = [{"question": "Who?", "answer": "She."}, {"prompt": "It was", "answer": " she."}] * 2
    rows = [{**row, "answer": f"{row['answer']} {i}"} for i, row in enumerate(rows)]
    styles = [e.style for e in build(forget=rows).forget_examples()]
    assert styles == [Style.QUESTION, Style.TEXT, Style.QUESTION, Style.TEXT]


def test_requests_cut_the_forget_set_in_the_order_in_which_they_first_stand(build):
    rows = [{**row, "request": "ba"[i % 2]} for i, row in enumerate(letters()["forget"])]
    task = build(forget=rows)
    assert {name: len(texts) for name, texts in task.forget.items()} == {"b": 6, "a": 6}
    assert list(task.forget) == ["b", "a"]


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_every_form_is_the_same_task(form, build, tmp_path, monkeypatch):
    rows = [{**row, "request": "one", "id": f"own{i}"} for i, row in enumerate(letters()["forget"])]
    first = build(forget=rows)
    for file in (tmp_path / "custom/mine").iterdir():
        file.unlink()
    assert build(form=form, forget=rows) == first
    assert first.forget["one"][0].id == "own0"


def test_the_digest_follows_rows_and_head(build):
    assert build().data == build().data
    other = [*letters()["retain"][:-1], {"question": "And?", "answer": "Yes."}]
    assert len({build().data, build(retain=other).data, build({"block": 32}).data}) == 3


# What `task.yaml` adds


def test_a_listed_probe_is_asked_beside_the_others_and_may_be_a_headline(build):
    head = {
        "anchored": "chance",
        "probes": [{**PROBE, "metrics": ["accuracy", "normalised_probability"]}],
        "knowledge": [{"probe": "forget_choice", "metric": "accuracy", "chance": 0.33}],
    }
    task = build(head, probes__some=CHOICES)
    assert "forget_qa" in names(task) and task.anchored is Zero.CHANCE
    dev, test = (probe(task, "forget_choice", split) for split in Split)
    assert [item.prompt for item in dev.items] == ["Q0?", "Q2?", "Q4?"]
    assert [item.correct for item in test.items] == [1, 0, 2]
    assert dev.kind is ProbeKind.CHOICE and dev.items[0].answers == ("a", "b", "c")
    (headline,) = task.knowledge
    assert (headline.probe, headline.metric, headline.chance) == ("forget_choice", "accuracy", 0.33)
    assert not {"auc_reference", "privleak_min_k_40"} & set(task.summaries[0].metrics), "nothing to compare with"


def test_a_listed_probe_takes_the_place_of_the_one_of_its_name(build):
    rows = [{"prompt": f"Say {i}", "answer": f"{i}"} for i in range(4)]
    settings = {**PROBE, "name": "forget_qa_generated", "kind": "generate", "metrics": ["rougeL_f1"]}
    task = build({"probes": [{**settings, "stop": ["\n"], "max_new_tokens": 5}]}, probes__some=rows)
    found = probe(task, "forget_qa_generated")
    assert (found.metrics, found.stop, found.max_new_tokens) == (("rougeL_f1",), ("\n",), 5)
    assert [h.metric for h in task.knowledge] == ["probability"], "the default headline is not measured any more"


def test_what_a_metric_needs_is_asked_of_the_model(build):
    rows = [{"text": f"Text {i}."} for i in range(4)]
    settings = {**PROBE, "kind": "logprob", "metrics": ["min_k_plus_plus_40", "gradient_norm"], "max_tokens": 9}
    task = build({"probes": [settings]}, probes__some=rows)
    assert probe(task, "forget_choice").needs == (Need.VOCABULARY, Need.GRADIENT_NORM)


# What is refused

LETTERS = letters()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"forget": None}, r"mine/forget\.jsonl: missing\. docs/tasks\.md#custom"),
        ({"retain": None}, r"mine/retain\.jsonl: missing"),
        ({"forget": LETTERS["forget"][:3]}, r"forget\.jsonl: 3 rows; the official relearning attack holds 4"),
        ({"retain": LETTERS["retain"][:1]}, r"retain\.jsonl: 1 rows; at least 2 are needed, one for dev and one"),
        (
            {"retain": [*LETTERS["retain"], {"question": "Why?", "anwser": "So."}]},
            r"retain\.jsonl: row 10: anwser: unknown column\. Did you mean answer\?",
        ),
        (
            {"retain": [{**row, "request": "a"} for row in LETTERS["retain"]]},
            r"retain\.jsonl: row 0: request: unknown column",
        ),
        ({"retain": [*LETTERS["retain"], {"question": "Why?"}]}, r"retain\.jsonl: row 10: answer: missing"),
        ({"retain": [*LETTERS["retain"], {"answer": "So."}]}, r"row 10: question: question or prompt .* not neither"),
        (
            {"retain": [*LETTERS["retain"], {"question": "Why?", "prompt": "As", "answer": "So."}]},
            r"row 10: question: .* not question and prompt",
        ),
        ({"retain": [*LETTERS["retain"], {"text": "a", "answer": "b"}]}, r"row 10: answer: text stands alone"),
        ({"retain": [*LETTERS["retain"], {"text": " "}]}, r"row 10: text: text is expected, not ' '"),
        (
            {"retain": [{**row, "id": "same"} for row in LETTERS["retain"]]},
            r"retain\.jsonl: row 1: id: same is that of .*retain\.jsonl: row 0 as well",
        ),
        (
            {"retain": [*LETTERS["retain"], LETTERS["forget"][2]]},
            r"retain\.jsonl: row 10: the same text as .*forget\.jsonl: row 2",
        ),
        (
            {"forget": [{**LETTERS["forget"][0], "request": "a"}, *LETTERS["forget"][1:]]},
            r"forget\.jsonl: row 1: request: missing",
        ),
    ],
)
def test_bad_texts_are_refused_by_file_row_and_column(changed, complaint, build):
    with pytest.raises(TaskError, match=complaint):
        build(**changed)


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        ({"blok": 5}, r"task\.yaml: blok: unknown key\. Did you mean block\? \(allowed: block, anchored, probes"),
        ({"block": 1}, r"block: must be at least 2, not 1"),
        ({"anchored": "nothing"}, r'anchored: one of retrained, chance is expected, not "nothing"'),
        ({"probes": [{**PROBE, "subst": "forget"}]}, r"probes\.0\.subst: unknown key\. Did you mean subset\?"),
        ({"probes": [{k: v for k, v in PROBE.items() if k != "kind"}]}, r"probes\.0\.kind: missing"),
        ({"probes": [{**PROBE, "kind": "chioce"}]}, r'probes\.0\.kind: .*choice is expected, not "chioce"'),
        ({"probes": [{**PROBE, "metrics": ["acuracy"]}]}, r"acuracy is no metric of a choice .* Did you mean accuracy"),
        ({"probes": [{**PROBE, "metrics": ["rougeL_f1"]}]}, r"rougeL_f1 is no metric of a choice probe"),
        ({"probes": [{**PROBE, "metrics": []}]}, r"probes\.0\.metrics: at least 1 is expected, not 0"),
        ({"probes": [PROBE, PROBE]}, r"probes\.1\.name: forget_choice is there twice"),
        ({"probes": [{**PROBE, "file": "../../secret"}]}, r"probes\.0\.file: .*not \"../../secret\""),
        ({"probes": [{**PROBE, "file": "/etc/passwd"}]}, r"probes\.0\.file: .*not \"/etc/passwd\""),
        ({"probes": [{**PROBE, "file": "probes/other"}]}, r"forget_choice: file: there is no .*probes/other"),
        (
            {"knowledge": [{"probe": "forget_q", "metric": "probability"}]},
            r"knowledge\.0\.probe: .*Did you mean forget_qa",
        ),
        ({"utility": [{"probe": "forget_qa", "metric": "probability"}]}, r"forget_qa is no probe of the retain subset"),
        (
            {"knowledge": [{"probe": "forget_qa", "metric": "loss"}]},
            r"loss is not measured by forget_qa, or falls with",
        ),
        (
            {"utility": [{"probe": "retain_qa", "metric": "probability", "chance": 1.5}]},
            r"utility\.0\.chance: .*not 1\.5",
        ),
        ("probes: [", r"task\.yaml: not YAML: line 1"),
        ("just words", r"task\.yaml: a mapping of settings is expected"),
    ],
)
def test_a_bad_head_is_refused_by_key(head, complaint, build):
    with pytest.raises(TaskError, match=complaint):
        build(head, probes__some=CHOICES)


@pytest.mark.parametrize(
    ("row", "kind", "complaint"),
    [
        ({"choices": ["a"]}, "choice", r"row 0: choices: a list of two or more texts is expected"),
        ({"choices": ["a", "b", 3]}, "choice", r"row 0: choices: text is expected, not 3"),
        ({"answer": 3}, "choice", r"row 0: answer: a whole number from 0 to 2 is expected, not 3"),
        ({"answer": None}, "choice", r"row 0: answer: missing; the right one of 3 choices"),
        ({"choices": ["a", "a", "b"]}, "choice", r"row 0: choices: the right one, 'a', is there twice"),
        ({"question": None, "choices": None, "answer": None, "text": "x"}, "generate", r"row 0: text: nothing can be"),
    ],
)
def test_bad_rows_of_a_probe_are_refused(row, kind, complaint, build):
    first = {key: value for key, value in (CHOICES[0] | row).items() if value is not None}
    settings = {**PROBE, "kind": kind, "metrics": ["accuracy" if kind == "choice" else "rougeL_f1"]}
    rows = [first, *([*CHOICES[1:]] if kind == "choice" else [{"question": "Q?", "answer": "A."}])]
    with pytest.raises(TaskError, match=rf"some\.jsonl: {complaint}"):
        build({"probes": [settings]}, probes__some=rows)


def test_its_own_official_attacks_are_those_of_its_board(build, monkeypatch):
    """Otherwise the ranking would need the relearning of `custom-1`, which no trial of this task has run."""
    relearn = {"name": "relearn", "samples": 4, "steps": 8, "lr": 5e-4}
    build({"attacks": {"dev": [{**relearn, "seed": 1}], "test": [{**relearn, "seed": 2}]}})
    sets = TASKS["custom/mine"].attack_sets
    assert list(sets) == ["mine-1"]
    assert sets["mine-1"][Split.TEST] == ({"name": "none"}, {**relearn, "seed": 2})
    assert sets["mine-1"][Split.DEV] == ({"name": "none"}, {**relearn, "seed": 1})
    build({})
    assert list(TASKS["custom/mine"].attack_sets) == ["custom-1"]


@pytest.mark.parametrize(
    ("attacks", "complaint"),
    [
        ({"dev": []}, r"attacks\.test: missing"),
        ({"dev": [], "test": [], "tset": []}, r"attacks\.tset: unknown key\. Did you mean test\?"),
        ([], r"attacks: "),
    ],
)
def test_official_attacks_are_named_for_both_splits(attacks, complaint, build):
    with pytest.raises(TaskError, match=complaint):
        build({"attacks": attacks})


def test_without_a_directory_it_says_which_variable_names_it(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TaskError, match=rf"task custom/mine: {VARIABLE} is not set"):
        entry("mine").build()


# The example


def test_the_example_on_the_page_is_the_one_in_the_folder():
    page = (CONFIGS.parent / "docs/tasks.md").read_text()
    folder = CONFIGS / "custom/lighthouses"
    assert (folder / "task.yaml").read_text().partition("\n")[2] in page
    for name in ("forget", "retain", "probes/forget_years"):
        assert (folder / f"{name}.jsonl").read_text().partition("\n")[0] in page


def test_the_example_runs(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from suite.cli import app

    monkeypatch.setenv(VARIABLE, str(CONFIGS))
    fast = ["anchors.epochs=1", "steps=1", "measure.limit=2"]
    words = ["run", str(CONFIGS / "custom.yaml"), *fast, "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["custom", "muse-news", "tofu-published", "wmdp-cyber"])
def test_every_spec_of_a_task_is_valid(name):
    from suite.spec.search_space import plan
    from suite.spec.yaml_file import load_file

    (trial,) = plan(load_file(CONFIGS / f"{name}.yaml")).trials()
    assert trial.task in TASKS
    if trial.anchors.source == "published":
        assert trial.model.name in TASKS[trial.task].published


# Answers that the published ROUGE cannot read


RUSSIAN = [{"question": f"Кто построил башню {i}?", "answer": f"Башню {i} построил Иван."} for i in range(8)]


def test_answers_of_another_script_are_refused_with_the_variant_that_reads_them(build):
    with pytest.raises(TaskError) as refused:
        build(forget=RUSSIAN)
    said = str(refused.value)
    assert "forget.jsonl: row 0: rougeL_recall of forget_qa_generated" in said
    assert "rougeL_recall_unicode reads every script" in said and "rouge: unicode" in said


def test_with_the_variant_they_are_asked_and_are_a_headline(build):
    task = build({"rouge": "unicode"}, forget=RUSSIAN)
    assert probe(task, "forget_qa_generated").metrics[0] == "rougeL_recall_unicode"
    assert [h.metric for h in (*task.knowledge, *task.utility)] == ["probability", "rougeL_recall_unicode"] * 2
    with pytest.raises(TaskError, match=r"task\.yaml: rouge: .*published"):
        build({"rouge": "cyrillic"})


def test_a_listed_probe_names_its_variant_itself(build):
    listed = {"name": "forget_more", "file": "more", "subset": "forget", "kind": "generate"}
    with pytest.raises(TaskError, match=r"more\.jsonl: row 0: rougeL_f1 of forget_more.*rougeL_f1_unicode reads"):
        build({"probes": [{**listed, "metrics": ["rougeL_f1"]}]}, more=RUSSIAN)
    build({"probes": [{**listed, "metrics": ["rougeL_f1_unicode"]}]}, more=RUSSIAN)


def test_answers_without_a_word_are_refused_for_every_variant(build):
    marks = [{"question": f"Which mark is number {i}?", "answer": "?" * (i + 1)} for i in range(8)]
    for head in (None, {"rouge": "unicode"}):
        with pytest.raises(TaskError, match=r"row 0: .* no letter or digit is in the answer"):
            build(head, forget=marks)
