"""Texts that do not fit the model, and malformed data, are refused before anything is computed."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from suite.cli import main
from suite.config.errors import SpecError
from suite.models.encoding import Encoder, Template
from suite.models.lengths import batched, check_lengths
from suite.models.loading import read_encoder
from suite.models.settings import ModelSpec, TinyModel
from tasks import TASKS
from tasks.task import Example, Item, Probe, ProbeKind, Split, Style, Subset, Task

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture(scope="module")
def pocket() -> Task:
    return TASKS["pocket"].build()


@pytest.fixture(scope="module")
def encoder(pocket) -> Encoder:
    found, context = read_encoder(ModelSpec(tiny=TinyModel(vocabulary=400)), pocket, "tiny")
    assert context == TinyModel().context
    found.tokenizer.chat_template = CHAT
    return found


@pytest.fixture(params=Template)
def templated(encoder, request) -> Encoder:
    return Encoder(encoder.tokenizer, request.param)


texts = st.text(max_size=30)


@settings(deadline=None)  # the first chat template takes a while
@given(st.lists(st.tuples(texts, texts, st.sampled_from(Style)), max_size=5))
def test_lengths_in_batches_are_those_of_one_text_at_a_time(encoder, pairs):
    for template in Template:
        one = Encoder(encoder.tokenizer, template)

        def sizes(encoder: Encoder) -> list[tuple[int, int]]:
            encoded = [encoder.encode(*pair) for pair in pairs]
            return [(len(e.ids), e.start) for e in encoded]

        assert batched(one, sizes) == sizes(one)


def task(pocket: Task, **changes) -> Task:
    return replace(pocket, **{"forget": {"all": ()}, "retain": (), "probes": (), **changes})


def words(n: int) -> str:
    return " ".join(["word"] * n)


def refused(*args) -> str:
    with pytest.raises(SpecError) as error:
        check_lengths(*args)
    return str(error.value)


def test_the_longest_text_that_fits_and_one_token_more(pocket, templated):
    example = Example("x7", "Who is it?", words(30), where="forget.json: row 7")
    texts = task(pocket, forget={"all": (example,)})
    total = len(templated.example(example).ids)
    check_lengths(texts, templated, total, ())
    check_lengths(texts, templated, None, ())
    message = refused(texts, templated, total - 1, ())
    assert message.startswith("forget.json: row 7: question (")
    assert f": {total} tokens, but the model reads {total - 1}." in message
    assert "model.tiny.context" in message
    nowhere = refused(task(pocket, retain=(replace(example, where=""),)), templated, total - 1, ())
    assert nowhere.startswith("training text x7: question")


def test_the_longest_of_several_is_named(pocket, encoder):
    examples = tuple(Example(f"x{n}", "Who?", words(n)) for n in (20, 40, 30, 1))
    assert "text x40" in (message := refused(task(pocket, retain=examples), encoder, 15, ()))
    assert "and 2 more" in message


def test_running_text_in_blocks_is_cut_and_questions_are_not(pocket, encoder):
    article = Example("a", "", words(50), Style.TEXT)
    check_lengths(task(pocket, retain=(article,), block=16), encoder, 16, ())
    assert "prompt (" in refused(task(pocket, retain=(article,)), encoder, 16, ())
    question = replace(article, style=Style.QUESTION)
    assert "question (" in refused(task(pocket, retain=(question,), block=16), encoder, 16, ())


def probe(kind: ProbeKind, item: Item, **changes) -> Probe:
    return Probe("asked", Subset.FORGET, Split.TEST, kind, (item,), (), **changes)


def test_what_a_probe_asks_has_to_fit(pocket, templated):
    empty = task(pocket)
    item = Item("i3", "Who is it?", ("short", words(40)), where="probes/asked.jsonl: row 3")
    short, long = (len(templated.encode(item.prompt, a, item.style).ids) for a in item.answers)
    check_lengths(empty, templated, short, [probe(ProbeKind.LOGPROB, item)])
    check_lengths(empty, templated, long, [probe(ProbeKind.CHOICE, item)])
    assert "asked.jsonl: row 3" in refused(empty, templated, long - 1, [probe(ProbeKind.CHOICE, item)])
    message = refused(empty, templated, short - 1, [probe(ProbeKind.LOGPROB, replace(item, where=""))])
    assert message.startswith("probe asked: item i3: question")


def test_an_answer_needs_room_to_be_generated(pocket, templated):
    item = Item("i", "Who is it?", (words(100),))  # the reference is not a part of the model's input
    generated = probe(ProbeKind.GENERATE, item, max_new_tokens=20)
    need = len(templated.prompt(item)) + 20
    check_lengths(task(pocket), templated, need, [generated])
    assert "max_new_tokens (20 tokens)" in refused(task(pocket), templated, need - 1, [generated])


def test_a_probe_that_cuts_its_texts_is_checked_where_they_are_cut(pocket, encoder):
    item = Item("i", "", (words(100),), style=Style.TEXT)
    cut = probe(ProbeKind.LOGPROB, item, max_tokens=32)
    check_lengths(task(pocket), encoder, 32, [cut])
    assert "32 tokens, but the model reads 31" in refused(task(pocket), encoder, 31, [cut])
    # A question is never cut.
    question = probe(ProbeKind.LOGPROB, replace(item, prompt="Who?", style=Style.QUESTION), max_tokens=32)
    assert "question" in refused(task(pocket), encoder, 32, [question])


SPEC = {
    "task": "custom/mine",
    "model": {"tiny": {"hidden": 16, "layers": 1, "heads": 2, "vocabulary": 300, "context": 160}},
    "anchors": {"epochs": 1, "lr": 1e-3, "batch_size": 4},
    "objective": "npo",
    "optimizer": {"name": "adam", "lr": 1e-3},
    "steps": 1,
    "batch_size": 2,
    "measure": {"attacks": []},
}
HEAD = {
    "probes": [{"name": "asked", "file": "asked.jsonl", "kind": "logprob", "subset": "forget", "metrics": ["loss"]}]
}


def rows(about: str, n: int = 6, **odd) -> list[dict]:
    found = [{"question": f"What is {about} {i}?", "answer": f"{i} of {about}"} for i in range(n)]
    return [{**row, **(odd if i == 3 else {})} for i, row in enumerate(found)]


def mirror(root: Path, **tables: list[dict]) -> None:
    folder = root / "custom/mine"
    folder.mkdir(parents=True)
    for name, table in {"forget": rows("a"), "retain": rows("b"), **tables}.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table))


def regrade(*called: object) -> tuple[int, str]:
    error = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()), redirect_stderr(error):
        patch.setattr(sys, "argv", ["regrade", *map(str, called)])
        try:
            main()
        except SystemExit as end:
            return end.code or 0, error.getvalue()
    return 0, error.getvalue()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"forget": rows("a", answer="long " * 200)},
            ["forget.jsonl: row 3", "question", "answer", "the model reads 160"],
        ),
        ({"retain": rows("b", question="long " * 200)}, ["retain.jsonl: row 3", "the model reads 160"]),
        ({"forget": [{"question": "What?"}, *rows("a")]}, ["forget.jsonl: row 0", "answer"]),
        ({"forget": rows("a", answer=7)}, ["forget.jsonl: row 3", "answer"]),
        ({"forget": []}, ["forget.jsonl", "0 rows"]),
        ({"forget": rows("a", id="x") + rows("c", id="x")}, ["forget.jsonl: row 9", "id"]),
    ],
    ids=["long answer", "long question", "missing column", "no text", "empty file", "id twice"],
)
@pytest.mark.parametrize("verb", ["run", "validate"])
def test_broken_data_ends_in_2_and_leaves_the_store_alone(tmp_path, monkeypatch, verb, tables, message):
    mirror(tmp_path, **tables)
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    store = ["--store", tmp_path / "store"] if verb == "run" else []
    code, error = regrade(verb, tmp_path / "spec.yaml", *store)
    assert code == 2, error
    assert all(word in error for word in message), error
    assert "Traceback" not in error
    assert not (tmp_path / "store").exists()


def test_a_published_table_with_a_row_too_few_ends_in_2(tmp_path, monkeypatch):
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu/forget01.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows("a", 39)))
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "task": "tofu/forget01"}))
    code, error = regrade("run", tmp_path / "spec.yaml", "--store", tmp_path / "store")
    assert (code, "forget01" in error, "39 rows" in error) == (2, True, True), error
    assert not (tmp_path / "store").exists()


def test_a_tokenizer_that_cannot_end_an_answer_ends_in_2(tmp_path, monkeypatch, encoder):
    mirror(tmp_path)
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    model = tmp_path / "model"
    encoder.tokenizer.save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 64}))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "model": {"name": str(model)}}))
    code, error = regrade("run", tmp_path / "spec.yaml", "--store", tmp_path / "store")
    assert (code, "no end-of-text token" in error) == (2, True), error
    assert not (tmp_path / "store").exists()


def test_a_model_of_ones_own_is_asked_for_its_context_alone(tmp_path, monkeypatch, encoder):
    mirror(tmp_path)
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    model = tmp_path / "model"
    encoder.tokenizer.save_pretrained(model)
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "model": {"name": str(model), "template": "bare"}}))
    for context, code in ((160, 0), (20, 2)):  # a generated answer may have 128 tokens
        config = LlamaConfig(
            vocab_size=400,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=context,
        )
        LlamaForCausalLM(config).save_pretrained(model)
        assert regrade("validate", spec)[0] == code
    (model / "config.json").write_text("{")
    assert regrade("validate", spec)[0] == 2
