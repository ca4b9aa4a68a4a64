"""Where tables are read from, in which formats, and messages about rows that are not as published."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.files import VARIABLE, Source, read, rows_digest
from tasks.task import TaskError

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}.", "more": i} for i in range(6)]
HUB = "Owner/Some-Data"


def source(folder: Path) -> Source:
    return Source("some", HUB, "0" * 40, folder)


def lines(file: Path, rows: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parquet(file: Path, rows: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


# Where a table is


@pytest.mark.parametrize("form", ["lines", "parquet"])
@pytest.mark.parametrize("name", ["facts/test", "facts_test"])
def test_a_split_is_a_plain_file_in_the_folder_of_its_configuration_or_beside_it(name, form, tmp_path):
    if form == "parquet":
        parquet(tmp_path / f"{name}.parquet", ROWS)
    else:
        lines(tmp_path / f"{name}.jsonl", ROWS)
    found = source(tmp_path).table("facts", "test", rows=6, text=("question", "answer"))
    assert found == [{"question": row["question"], "answer": row["answer"]} for row in ROWS]


@pytest.mark.parametrize(
    "names",
    [
        ("facts/test-00000-of-00002.parquet", "facts/test-00001-of-00002.parquet"),
        ("facts/test/0000.parquet", "facts/test/0001.parquet"),
    ],
)
def test_shards_are_read_in_order_and_no_other_split_with_them(names, tmp_path):
    parquet(tmp_path / names[0], ROWS[:4])
    parquet(tmp_path / names[1], ROWS[4:])
    parquet(tmp_path / "facts/test_extra-00000-of-00001.parquet", ROWS)
    parquet(tmp_path / "facts/train-00000-of-00001.parquet", ROWS)
    found = source(tmp_path).table("facts", "test", text=("answer",))
    assert [row["answer"] for row in found] == [row["answer"] for row in ROWS]
    assert found[5].where == f"{tmp_path / names[1]}: row 1", "a row is named by the shard that holds it"


def test_the_default_configuration_is_in_the_folder_data(tmp_path):
    parquet(tmp_path / "data/train-00000-of-00001.parquet", ROWS)
    assert len(source(tmp_path).table("default", text=("answer",))) == 6


def test_a_file_called_after_the_configuration_alone_is_its_only_split(tmp_path):
    lines(tmp_path / "facts.jsonl", ROWS)
    assert len(source(tmp_path).table("facts", text=("answer",))) == 6
    assert len(source(tmp_path).table("facts", "test", alone=True, text=("answer",))) == 6
    with pytest.raises(TaskError, match=r"no facts/test\.json, \.jsonl or \.parquet"):
        source(tmp_path).table("facts", "test", text=("answer",))


def test_a_split_that_revisions_name_differently_is_found_by_any_of_its_names(tmp_path):
    lines(tmp_path / "facts/retain2_qa.jsonl", ROWS)
    assert len(source(tmp_path).table("facts", ("retain_qa", "retain2_qa"), text=("answer",))) == 6


@pytest.mark.parametrize("folder", ["some-set", "some/set", "some_set", "Some-Data", "some-data", HUB])
def test_the_mirror_is_called_as_the_benchmark_or_as_on_the_hub(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = Source.find("some-set", HUB, "0" * 40)
    assert found.folder == tmp_path / folder
    assert str(found) == "mirror: some-set"


def test_without_a_mirror_the_source_is_the_pinned_revision(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert str(Source.find("some", HUB, "0" * 40)) == f"{HUB}@{'0' * 40}"


# What a file holds


def test_bare_texts_are_the_column_text(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["one", "two"]))
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    for name in "ab":
        assert source(tmp_path).table(name, text=("text",)) == [{"text": "one"}, {"text": "two"}]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=60, deadline=None)
@example([{"text": "one\u2028line \x85 of \x0b text\r", "n": 1}])
@given(st.lists(st.fixed_dictionaries({"text": texts, "n": st.integers(-9, 9)}), min_size=1, max_size=5))
def test_lines_arrays_and_parquet_hold_the_same_rows_whatever_the_text(tmp_path_factory, rows):
    """Line separators inside a text are no new rows."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (folder / "b.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    parquet(folder / "c.parquet", rows)
    assert read(folder / "a.jsonl") == read(folder / "b.json") == read(folder / "c.parquet") == rows
    digests = {rows_digest({"t": source(folder).table(name, blank=("text",))}) for name in "abc"}
    assert len(digests) == 1, "the same rows have the same digest, wherever they are from"


def test_a_row_says_where_it_stands_and_only_the_columns_asked_for_are_kept(tmp_path):
    lines(tmp_path / "facts.jsonl", ROWS)
    row = source(tmp_path).table("facts", text=("answer",))[3]
    assert row.where == f"{tmp_path}/facts.jsonl: row 3"
    assert row == {"answer": "It is 3."}


# What is refused

CHOICE = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"answer": None}, r"row 1: answer: missing; the right one of 4 choices is expected"),
        ({"answer": 4}, r"row 1: answer: a whole number from 0 to 3 is expected, not 4"),
        ({"answer": -1}, r"row 1: answer: a whole number from 0 to 3 is expected, not -1"),
        ({"answer": "B"}, r"row 1: answer: a whole number from 0 to 3 is expected, not 'B'"),
        ({"answer": True}, r"row 1: answer: a whole number from 0 to 3 is expected, not True"),
        ({"choices": ["a", "b", "c"]}, r"row 1: choices: a list of 4 texts is expected"),
        ({"choices": "abcd"}, r"row 1: choices: a list of 4 texts is expected"),
        ({"choices": ["a", "b", "c", 4]}, r"row 1: choices: text is expected, not 4"),
        ({"choices": None}, r"row 1: choices: missing"),
        ({"question": ""}, r"row 1: question: text is expected, not ''"),
        ({"question": 7}, r"row 1: question: text is expected, not 7"),
        ({"question": None}, r"row 1: question: missing"),
    ],
)
def test_a_question_without_a_right_answer_is_refused_by_file_row_and_field(change, complaint, tmp_path):
    lines(tmp_path / "facts.jsonl", [CHOICE, {**CHOICE, **change}])
    with pytest.raises(TaskError, match=rf"facts\.jsonl: {complaint}"):
        source(tmp_path).table("facts", text=("question",), choices=4)


def test_a_published_table_has_its_published_number_of_rows(tmp_path):
    lines(tmp_path / "facts.jsonl", ROWS)
    with pytest.raises(TaskError, match=r"facts\.jsonl: 6 rows, not the 7 that facts was published with"):
        source(tmp_path).table("facts", rows=7, text=("answer",))
    lines(tmp_path / "empty.jsonl", [])
    with pytest.raises(TaskError, match=r"empty\.jsonl: empty; empty has one or more rows"):
        source(tmp_path).table("empty", text=("answer",))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl: not readable as json: row 1: "),
        ("a.json", b'[{"text": "x"}', r"a\.json: not readable as json: "),
        ("a.json", b'["x", 7]', r"a\.json: not readable as json: row 1: columns by their names are expected, not 7"),
        ("a.parquet", b"PAR1", r"a\.parquet: not readable as parquet: "),
        ("a.txt", b"\xff\xfe", r"a\.txt: not readable as text: "),
    ],
)
def test_a_damaged_file_is_named(name, content, complaint, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=complaint):
        source(tmp_path).table("a", text=("text",))


def test_a_blank_line_is_a_row_where_texts_may_be_empty_and_none_elsewhere(tmp_path):
    """WikiText is published with its blank rows, and its number of rows counts them."""
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki/test.txt").write_text("\n = Title = \n\n Words .\n\n")
    rows = source(tmp_path).table("wiki", "test", rows=5, blank=("text",))
    assert [row["text"] for row in rows] == ["", " = Title = ", "", " Words .", ""]
    assert rows[3].where.endswith("test.txt: row 3")
    full = source(tmp_path).table("wiki", "test", text=("text",))
    assert [row["text"] for row in full] == [" = Title = ", " Words ."]


def test_the_real_wikitext_as_a_text_file_has_its_published_number_of_rows(data, tmp_path):
    folder = tmp_path / "wikitext-2-raw-v1"
    folder.mkdir()
    (folder / "test.txt").write_bytes((data / "wikitext2/test.txt").read_bytes())
    assert len(source(tmp_path).table("wikitext-2-raw-v1", "test", rows=4358, blank=("text",))) == 4358
