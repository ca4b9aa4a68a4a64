"""Tokens of which a model has no embedding: refused before work where anything has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, processors

from suite.config.errors import ModelError
from suite.models.encoding import Template
from suite.models.loading import load_tokenizer, read_encoder, resolve_model
from suite.models.settings import ModelSpec
from tasks import TASKS
from tasks.task import Example, Item, Style
from tests.support.command import regrade
from tests.support.hostile_folders import TEMPLATE, copied, model_folder

ROWS = 258


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return copied(whole, tmp_path / "model")


def grown(folder: Path, *, template: str | None = TEMPLATE, post: bool = False, **tokens: object) -> Path:
    """The folder with special tokens that the model has no embeddings for."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens(tokens)
    if post:
        last = len(tokenizer) - 1
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="first $A", special_tokens=[("first", last)]
        )
    tokenizer.chat_template = template
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def encoders(folder: Path, **spec: object):
    """The ways to an encoder: before weights are read, and with the model."""
    model = ModelSpec(name=str(folder), **spec)
    yield lambda: read_encoder(model, TASKS["pocket"].build(), str(folder))[0]
    yield lambda: resolve_model(model, str(folder)).encoder


WRITTEN = {
    "as text": "[PAD]" + TEMPLATE,
    "by its name": "{{ pad_token }}" + TEMPLATE,
    "put together": "{{ '[' ~ 'PAD' ~ ']' }}" + TEMPLATE,
    "after an answer": TEMPLATE + "{% if messages[-1].role == 'assistant' %}{{ pad_token }}{% endif %}",
    "before an answer": TEMPLATE.replace("<assistant>", "<assistant>{{ pad_token }}"),
}


@pytest.mark.parametrize("template", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_the_chat_template_writes_has_an_embedding(template, folder):
    grown(folder, template=template, pad_token="[PAD]")
    for encoder in encoders(folder):
        with pytest.raises(
            ModelError, match=r'the chat template has the token "\[PAD\]" with the id 258 .*resize'
        ) as found:
            encoder()
        assert f"{folder}, and the model has embeddings for {ROWS}" in str(found.value)
    for encoder in encoders(folder, template=Template.PLAIN):
        assert encoder().encode("one", "two", Style.QUESTION).ids  # the template is not used


def test_a_token_that_the_chat_template_writes_for_others_alone_is_none_of_ours(folder):
    template = "{% if tools %}[PAD]{% endif %}" + TEMPLATE
    grown(folder, template=template, pad_token="[PAD]")
    for encoder in encoders(folder):
        assert encoder().encode("one", "two", Style.QUESTION).ids


def test_a_token_that_the_tokenizer_puts_before_every_text_has_an_embedding(folder):
    grown(folder, template=None, post=True, additional_special_tokens=["<first>"])
    for encoder in encoders(folder):
        with pytest.raises(ModelError, match='the beginning of every text has the token "<first>" with the id 258'):
            encoder()


def test_a_text_that_quotes_such_a_token_has_its_characters(folder):
    grown(folder, pad_token="[PAD]", additional_special_tokens=["<image>"])
    for encoder in encoders(folder):
        ids = encoder().encode("what is [PAD]?", "an <image>, [pad]", Style.QUESTION).ids
        assert max(ids) < ROWS


BLANK, BYTE = AddedToken("   ", special=True, normalized=False), AddedToken("<0x41>", special=True, normalized=False)


@pytest.mark.parametrize("token", [BLANK, BYTE], ids=["blank", "byte"])
@pytest.mark.parametrize("style", [Style.QUESTION, Style.TEXT])
@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "plain"])
def test_a_text_with_such_a_token_is_one_sentence(template, style, token, folder):
    """Tokens that are no control tokens: a text that has their characters has the token."""
    grown(folder, template=template, additional_special_tokens=[token])
    text = f"one{token.content}two"
    said = (
        rf"^the text \".*one{token.content}two.*\" has the token \"{token.content}\" with the id 258 .* {ROWS}\. Take"
    )
    for make in encoders(folder):
        encoder = make()
        asked = (
            lambda e=encoder: e.encode(text, "three", style),
            lambda e=encoder: e.encode("three", text, style),
            lambda e=encoder: e.prompt(Item("a", text, ("b",), style=style)),
            lambda e=encoder: e.examples([Example("a", "", text, style)], block=8 if style is Style.TEXT else None),
        )
        for ask in asked:
            with pytest.raises(ModelError, match=said):
                ask()
        assert encoder.encode("one two", "three", style).ids  # and others go on


SPEC = {
    "task": "custom/blank",
    "anchors": {"epochs": 1, "lr": 1e-3, "batch_size": 4},
    "objective": "npo",
    "optimizer": {"name": "adam", "lr": 1e-3},
    "steps": 1,
    "batch_size": 2,
    "measure": {"attacks": []},
}


@pytest.mark.parametrize("verb", ["validate", "run", "eval"])
def test_data_with_such_a_token_is_refused_before_work(verb, folder, tmp_path, monkeypatch):
    grown(folder, additional_special_tokens=[BLANK])
    data = tmp_path / "data"
    (data / "custom" / "blank").mkdir(parents=True)
    for name, answer in (("forget", "It is   here."), ("retain", "It is here.")):
        rows = [{"question": f"Where is {name} {n}?", "answer": answer} for n in range(6)]
        (data / "custom" / "blank" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "trial.yaml").write_text(json.dumps(SPEC))
    what = [tmp_path / "trial.yaml", f"model.name={folder}"] if verb != "eval" else [folder, "--task", SPEC["task"]]
    store = [] if verb == "validate" else ["--store", tmp_path / "store"]
    monkeypatch.setenv("REGRADE_DATA", str(data))
    said = regrade(verb, *what, *store, code=2).stderr
    assert said.count("\n") == 1 and '"   " with the id 258' in said
    assert not list((tmp_path / "store").rglob("*.parquet"))
