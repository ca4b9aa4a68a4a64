"""MUSE: what is taught and kept, the prompts word for word, and the requests of its sustained and scaled forms."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from suite.config.runtime import RuntimeSpec
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.trials.given_checkpoint import measure_checkpoint
from suite.trials.preflight import preflight
from tasks import TASKS, Split, Style, Subset, Task, TaskError
from tasks.files import VARIABLE
from tests.support.hostile_folders import model_folder
from tests.support.published import muse_tables, write

NAMES = ("muse/news", "muse/books", "muse/news-sust", "muse/news-scal")


@pytest.fixture(scope="module")
def built(mirror: Path) -> dict[str, Task]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, str(mirror))
        return {name: TASKS[name].build() for name in NAMES}


def items(task: Task, name: str) -> dict:
    """A probe's items of both splits, by id."""
    return {item.id: item for probe in task.probes if probe.name == name for item in probe.items}


def probe(task: Task, name: str):
    return next(probe for probe in task.probes if probe.name == name)


@pytest.fixture
def news(tmp_path, monkeypatch):
    """A mirror of News of the test's own, as lines: `news(changed tables)` builds the task from it."""

    def build(name: str = "muse/news", **changed) -> Task:
        tables = muse_tables("news") | {key.replace("__", "/"): rows for key, rows in changed.items()}
        shutil.rmtree(tmp_path / "muse-news", ignore_errors=True)
        write(tmp_path / "muse-news", {key: rows for key, rows in tables.items() if rows is not None})
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        return TASKS[name].build()

    return build


@pytest.mark.parametrize(("name", "sizes"), [("muse/news", (889, 1777, 3043)), ("muse/books", (4, 12, 3))])
def test_the_published_texts_are_taught_kept_and_held_out(name, sizes, built):
    task = built[name]
    parts = (task.forget_examples(), task.retain, task.holdout)
    assert tuple(map(len, parts)) == sizes
    assert all(example.style is Style.TEXT and not example.prompt for part in parts for example in part)
    assert task.block == 2048
    for each in ("forget_verbatim", "forget_knowledge", "retain_knowledge", "forget_text", "holdout_text"):
        assert len(items(task, each)) == 100


def test_a_question_follows_ten_others_in_the_published_words(built):
    expected = "".join(
        f"Question: Which shown article is number {i}?\nAnswer: The shown article {i}\n\n" for i in range(10)
    )
    expected += "Question: Which article is number 17?\nAnswer: "
    item = items(built["muse/news"], "forget_knowledge")["forget_qa17"]
    assert item.prompt == expected
    assert item.answers == ("The article 17",)
    assert item.style is Style.TEXT
    one = probe(built["muse/news"], "forget_knowledge")
    assert one.max_new_tokens == 32
    assert one.stop == ("\n\n", "\nQuestion", "Question:"), "as in the authors' code: one of them has no colon"


def test_each_subset_is_asked_after_shots_of_its_own(built):
    kept = items(built["muse/news"], "retain_knowledge")["retain_qa0"]
    assert "shown report 9" in kept.prompt and "article" not in kept.prompt


def test_a_passage_is_continued_as_it_stands(built):
    one = probe(built["muse/news"], "forget_verbatim")
    assert (one.max_new_tokens, one.max_reference_tokens) == (128, 128)
    item = items(built["muse/news"], "forget_verbatim")["verbatim5"]
    assert (item.prompt, item.answers, item.style) == ("It was told that 5", (" is followed by 6.",), Style.TEXT)


def test_a_continuation_that_quotes_its_beginning_is_kept_whole(news):
    """Published code takes the reference from the whole text by removing the beginning wherever it occurs."""
    rows = muse_tables("news")["verbmem/forget"]
    rows[0] = {"prompt": "He said", "gt": " what he said: He said nothing."}
    task = news(verbmem__forget=rows)
    assert items(task, "forget_verbatim")["verbatim0"].reference == " what he said: He said nothing."


def test_membership_is_asked_of_whole_blocks_and_everything_that_it_needs(built):
    for name in NAMES:
        for subset in Subset:
            one = probe(built[name], f"{subset}_text")
            assert one.max_tokens == 2048
            assert all(item.prompt == "" for item in one.items)
        (summary,) = built[name].summaries
        assert summary.probes == ("forget_text", "holdout_text")
        assert {"auc_min_k_40", "auc_reference", "privleak_min_k_40"} <= set(summary.metrics)


def test_sustained_requests_are_disjoint_and_scaled_ones_are_nested(built):
    sust = [set(request) for request in built["muse/news-sust"].forget.values()]
    assert [len(request) for request in sust] == [889, 889, 889, 887]
    assert len(set().union(*sust)) == sum(map(len, sust))
    scal = [set(request) for request in built["muse/news-scal"].forget.values()]
    assert [len(request) for request in scal] == [889, 1778, 2667, 3554]
    assert all(one < other for one, other in pairwise(scal))
    assert list(built["muse/news-scal"].forget) == ["scal1", "scal2", "scal3", "scal4"]


def test_together_nested_requests_hold_each_text_once(built):
    together = built["muse/news-scal"].forget_examples()
    assert len(together) == len({example.id for example in together}) == len({e.answer for e in together}) == 3554


def test_nothing_is_kept_that_any_request_forgets(news):
    tables = muse_tables("news")
    retain = [*tables["sust/forget_3"][:5], *tables["raw/retain1"][5:]]
    sust = news("muse/news-sust", raw__retain1=retain)
    assert len(sust.retain) == 1772
    assert not {e.answer for e in sust.retain} & {e.answer for e in sust.forget_examples()}
    plain = news("muse/news", raw__retain1=retain)
    assert len(plain.retain) == 1777, "there they are no part of what is forgotten"


def test_where_everything_kept_is_forgotten_the_task_is_refused(news):
    kept = muse_tables("news")["scal/forget_4"][1000:2777]
    with pytest.raises(TaskError, match="nothing is left to be kept"):
        news("muse/news-scal", raw__retain1=kept)


def test_early_revisions_call_the_second_half_of_the_retain_set_by_its_name(news, built):
    tables = muse_tables("news")
    renamed = {
        "knowmem__retain2_qa": tables["knowmem/retain_qa"],
        "knowmem__retain2_qa_icl": tables["knowmem/retain_qa_icl"],
        "privleak__retain2": tables["privleak/retain"],
    }
    gone = dict.fromkeys(("knowmem__retain_qa", "knowmem__retain_qa_icl", "privleak__retain"))
    assert news(**renamed, **gone) == built["muse/news"]


def test_bare_texts_in_files_as_the_authors_keep_them_are_the_same_task(mirror, tmp_path, monkeypatch, built):
    """Their repository has the texts of `privleak` as arrays of strings."""
    folder = write(tmp_path / "muse-news", muse_tables("news"))
    for name in ("forget", "retain", "holdout"):
        file = folder / f"privleak/{name}.jsonl"
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        file.unlink()
        (folder / f"privleak/{name}.json").write_text(json.dumps(texts))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert TASKS["muse/news"].build() == built["muse/news"]


def test_bad_tables_are_named(news):
    rows = muse_tables("news")["knowmem/forget_qa"]
    with pytest.raises(TaskError, match=r"knowmem/forget_qa\.jsonl: 99 rows, not the 100"):
        news(knowmem__forget_qa=rows[:99])
    with pytest.raises(TaskError, match=r"knowmem/forget_qa\.jsonl: row 4: answer: missing"):
        news(knowmem__forget_qa=[*rows[:4], {"question": "Why?"}, *rows[5:]])
    with pytest.raises(
        TaskError, match=r"muse-news: no verbmem/forget\.json.*Copy it from the hub's muse-bench/MUSE-News"
    ):
        news(verbmem__forget=None)


def test_published_checkpoints_are_pinned_and_a_retrained_one_is_there_where_it_fits():
    target, retrained = TASKS["muse/news"].published["MUSE-News"]
    assert target.startswith("muse-bench/MUSE-News_target@") and retrained.startswith("muse-bench/MUSE-News_retrain@")
    assert set(TASKS["muse/books"].published) == {"MUSE-Books"}
    # The published retrained model has seen what the later requests forget.
    assert TASKS["muse/news-scal"].published["MUSE-News"] == (target, None)
    for name in NAMES:
        for checkpoint in TASKS[name].published.values():
            assert all(len(one.partition("@")[2]) == 40 for one in checkpoint if one)


def test_the_splits_share_no_question(built):
    for name in NAMES:
        for each in ("forget_verbatim", "forget_knowledge", "forget_text"):
            dev, test = (next(p for p in built[name].probes_of(split) if p.name == each) for split in Split)
            assert not {(i.prompt, i.reference) for i in dev.items} & {(i.prompt, i.reference) for i in test.items}


def with_empty(rows: list[dict], *places: int) -> list[dict]:
    return [{"text": ""} if place in places else row for place, row in enumerate(rows)]


def test_the_published_empty_article_is_read_and_counted(news):
    """Row 821 of 889 has no text. The authors' code joins it to the others like any other article."""
    tables = muse_tables("news")
    task = news(raw__forget=with_empty(tables["raw/forget"], 821))
    assert len(task.forget_examples()) == 889
    assert [e.id for e in task.forget_examples() if not e.answer] == ["forget821"]
    joined = "\n\n".join(row["text"] for row in with_empty(tables["raw/forget"], 821))
    assert "\n\n".join(e.answer for e in task.forget_examples()) == joined
    sust = news("muse/news-sust", sust__forget_1=with_empty(tables["sust/forget_1"], 821))
    assert [len(request) for request in sust.forget.values()] == [889, 889, 889, 887]
    scaled = {f"scal__forget_{n}": with_empty(tables[f"scal/forget_{n}"], 821) for n in range(1, 5)}
    scal = news("muse/news-scal", **scaled)
    assert [len(request) for request in scal.forget.values()] == [889, 1778, 2667, 3554]
    assert len(scal.forget_examples()) == 3554


def test_more_empty_articles_than_were_published_are_refused(news):
    tables = muse_tables("news")
    with pytest.raises(TaskError, match=r"row 822: text: empty, and only one text"):
        news(raw__forget=with_empty(tables["raw/forget"], 821, 822))
    with pytest.raises(TaskError, match=r"row 5: text: text is expected"):
        news(raw__retain1=with_empty(tables["raw/retain1"], 5))


@pytest.fixture
def questions_alone(tmp_path, monkeypatch) -> Task:
    tables = {name: rows for name, rows in muse_tables("news").items() if name.startswith("knowmem/")}
    write(tmp_path / "muse-news", tables)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return TASKS["muse/news"].build()


def test_the_questions_alone_are_a_task_for_given_checkpoints(questions_alone, built):
    assert questions_alone.name == "muse/news-knowledge", "its rows are not taken for those of the whole task"
    whole = {(p.name, p.split): p for p in built["muse/news"].probes}
    assert {p.name for p in questions_alone.probes} == {"forget_knowledge", "retain_knowledge"}
    assert all(p.digest == whole[p.name, p.split].digest for p in questions_alone.probes)
    assert not questions_alone.summaries


def test_without_the_texts_nothing_can_be_trained(questions_alone, tmp_path):
    with pytest.raises(TaskError, match=rf"{tmp_path}/muse-news: .*Copy them from the hub's muse-bench/MUSE-News"):
        questions_alone.forget_examples()
    settings = {"objective": {"name": "graddiff"}, "optimizer": {"name": "adam", "lr": 1e-3}, "steps": 1}
    spec = trial({"task": "muse/news", "model": {"tiny": {}}, "anchors": {"epochs": 1, "lr": 1e-3}, **settings})
    with pytest.raises(TaskError, match="none of the texts"):
        preflight([spec], MeasureSpec(attacks=()), RuntimeSpec())


def test_a_given_checkpoint_is_measured_by_the_questions_alone(questions_alone, tmp_path):
    checkpoint = model_folder(tmp_path / "model")
    config = checkpoint / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 4096}))
    result = measure_checkpoint(
        str(checkpoint),
        "muse/news",
        ModelSpec(name=str(checkpoint)),
        Store(tmp_path / "store").stages,
        measure=MeasureSpec(attacks=(), limit=2),
    )
    numbers = {(row["probe"], row["split"]): row for row in result.rows if row["metric"] == "rougeL_f1"}
    assert {probe for probe, _ in numbers} == {"forget_knowledge", "retain_knowledge"}
    assert all(row["value"] is not None and row["task"] == "muse/news-knowledge" for row in numbers.values())


def test_a_mirror_that_lacks_some_texts_is_not_taken_for_one_of_questions(news):
    with pytest.raises(TaskError, match="no raw/forget"):
        news(**dict.fromkeys(("raw__forget", "raw__retain1", "raw__holdout")))
