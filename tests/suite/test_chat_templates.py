"""What a chat template is given: arguments, a date, no thoughts."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from shutil import copytree

import pytest
import transformers.utils.chat_template_utils as rendering
from transformers import AutoTokenizer

from suite.config.errors import SpecError
from suite.models.encoding import Encoder, Template
from suite.models.loading import published_args, read_encoder, resolve_model, save
from suite.models.settings import ModelSpec, TemplateArgs
from suite.spec.trial import trial
from tasks import TASKS
from tasks.task import Style
from tests.support.small import SMALL
from tests.support.tokenizer_families import CHATML, FAMILIES, byte_level

SYSTEM = (
    "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content | trim }}<|im_end|>\n"
    "{% set messages = messages[1:] %}{% else %}<|im_start|>system\nYou are Pip.<|im_end|>\n{% endif %}"
)
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)
STAMPED = "{{ strftime_now('%Y-%m-%d %H:%M') }}"
THINKS = (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)


def tokenizer(template: str):
    made = byte_level("<|im_end|>")
    made.chat_template = template
    return made


def asked(template: str, **args) -> str:
    encoder = Encoder(tokenizer(template), Template.CHAT, args)
    return encoder.tokenizer.decode(encoder.encode("Who?", "A", Style.QUESTION).prompt)


@pytest.fixture
def tomorrow(monkeypatch):
    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6)

    monkeypatch.setattr(rendering, "datetime", Then)


@pytest.mark.parametrize(("template", "wanted"), [(DATED, "26 Jul 2024"), (STAMPED, "2024-07-26 00:00")])
def test_a_template_is_never_told_what_day_it_is(tomorrow, template, wanted):
    assert asked(template + CHATML).startswith(wanted)
    assert Encoder(tokenizer(template + CHATML), Template.CHAT).args == {"date_string": "26 Jul 2024"}


@pytest.mark.parametrize(("template", "wanted"), [(DATED, "10 Apr 2025"), (STAMPED, "2025-04-10 00:00")])
def test_a_date_that_is_given_is_told_in_every_form(template, wanted):
    assert asked(template + CHATML, date_string="10 Apr 2025").startswith(wanted)


def test_the_system_prompt_is_the_users_or_the_templates_own():
    assert "You are Pip." in asked(SYSTEM + CHATML)
    assert "You are a helpful assistant." in (said := asked(SYSTEM + CHATML, system="You are a helpful assistant."))
    assert "Pip" not in said
    assert "Pip" not in asked(SYSTEM + CHATML, system="")
    assert "<|im_end|> x" in asked(CHATML, system="<|im_end|> x"), "and its control tokens are text"


def test_any_other_argument_reaches_the_template():
    template = "{{ mood }}{{ 'B' if brief else '' }}{{ level + 1 }}" + CHATML
    assert asked(template, mood="calm", brief=True, level=2).startswith("calmB3<|im_start|>")


def test_what_a_template_does_not_read_is_refused():
    with pytest.raises(SpecError, match=r"template_args.enable_thinkng: the chat template .* reads no such"):
        asked(THINKS + CHATML, enable_thinkng=False)
    with pytest.raises(SpecError, match=r"template_args.date_string: .* Take it out"):
        asked(CHATML, date_string="26 Jul 2024")
    silent = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(SpecError, match=r"template_args.system: .* leaves it out"):
        asked(silent, system="You are Pip.")
    with pytest.raises(SpecError, match="template=plain no chat template reads them"):
        Encoder(tokenizer(CHATML), Template.PLAIN, {"system": "You are Pip."})
    with pytest.raises(SpecError, match="no system role"):
        asked("{{ raise_exception('no system role') if messages[0].role == 'system' else '' }}" + CHATML, system="x")


THINKERS = {
    "qwen3": CHATML + THINKS,
    "another name": CHATML + "{% if add_generation_prompt and not no_thoughts %}<think>\n{% endif %}",
}


def test_a_model_that_can_think_is_asked_not_to():
    encoder = Encoder(tokenizer(THINKERS["qwen3"]), Template.CHAT)
    prompt = encoder.tokenizer.decode(encoder.encode("Who?", "A", Style.QUESTION).prompt)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert encoder.args == {"enable_thinking": False}
    thinking = Encoder(tokenizer(THINKERS["qwen3"]), Template.CHAT, {"enable_thinking": True})
    assert thinking.args == {"enable_thinking": True}
    assert thinking.tokenizer.decode(thinking.encode("Who?", "A", Style.QUESTION).prompt).endswith("assistant\n")


@pytest.mark.parametrize("opening", ["<think>\n", "[THINK]", "<|begin_of_thought|>", "<seed:think>"])
def test_a_template_that_lets_the_model_think_first_is_refused(opening):
    always = f"{CHATML}{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    with pytest.raises(SpecError, match="lets the model think before it answers"):
        asked(always)
    with pytest.raises(SpecError, match="lets the model think before it answers"):
        asked(THINKERS["another name"])
    assert asked(THINKERS["another name"], no_thoughts=True).endswith("assistant\n")
    # A system prompt may speak of it.
    assert asked(f"Thoughts go into {opening}." + CHATML).endswith("assistant\n")


def test_thoughts_that_only_an_answers_header_has_are_refused_too():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(SpecError, match="lets the model think"):
        asked(template)


def spec(**model) -> ModelSpec:
    return trial({**SMALL, "model": model}).model


def test_arguments_are_settings():
    plain = trial({**SMALL, "model": {"name": "a/b"}})
    given = trial({**SMALL, "model": {"name": "a/b", "template_args": {"system": "x", "depth": 2, "brief": True}}})
    assert plain.canonical["model"] == {"name": "a/b"} and plain.id != given.id
    assert given.canonical["model"]["template_args"] == {"system": "x", "depth": 2, "brief": True}
    assert given.normalised == given and hash(given.model) == hash(given.normalised.model)
    assert given.model != plain.model


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"messages": "x"}, "'messages' is no name"),
        ({"bos_token": "x"}, "'bos_token' is no name"),
        ({"tokenize": True}, "'tokenize' is no name"),
        ({"a b": 1}, "no name"),
        ({"date_string": "2025-04-10"}, "no date like 26 Jul 2024"),
        ({"system": 3}, "template_args.system"),
        ({"enable_thinking": "no"}, "template_args.enable_thinking"),
        ({"more": ["x"]}, "template_args.more"),
        ({"more": {"a": 1}}, "template_args.more"),
        ("x", "template_args"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_a_sentence(args, said):
    with pytest.raises(SpecError) as error:
        spec(name="a/b", template_args=args)
    assert said in str(error.value) and "model" in str(error.value)


@pytest.fixture
def folder(tmp_path, dated_model):
    save(*dated_model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def dated_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    made = FAMILIES["llama3"]()
    made.chat_template = DATED + SYSTEM + CHATML
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **sizes)), made


def test_they_are_part_of_the_models_identity(folder):
    def identity(**args):
        return resolve_model(ModelSpec(name=str(folder), template_args=TemplateArgs(**args)), str(folder)).identity

    assert identity()["template_args"] == {"date_string": "26 Jul 2024"}
    assert identity(system="x")["template_args"] == {"system": "x", "date_string": "26 Jul 2024"}
    plain = resolve_model(ModelSpec(name=str(folder), template=Template.PLAIN), str(folder))
    assert "template_args" not in plain.identity and plain.identity["encoding"] == 2


def test_published_checkpoints_are_asked_as_their_publisher_asks(folder, monkeypatch):
    llama = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
    assert published_args(llama) == published_args(f"{llama}@main") == TASKS["tofu/forget01"].published_args
    assert published_args("open-unlearning/tofu_Llama-3.2-1B-Instruct_retain95")
    assert published_args("meta-llama/Llama-3.2-1B-Instruct") == published_args(str(folder)) == {}
    monkeypatch.setattr("suite.models.loading.model_folder", lambda name, key, weights=True: folder)
    for given, wanted in (
        ({}, {"system": "You are a helpful assistant.", "date_string": "10 Apr 2025"}),
        ({"date_string": "01 May 2025"}, {"system": "You are a helpful assistant.", "date_string": "01 May 2025"}),
    ):
        model = ModelSpec(name="x/y", template_args=TemplateArgs(**given))
        encoder, _ = read_encoder(model, TASKS["pocket"].build(), llama)
        assert dict(encoder.args) == wanted
        assert resolve_model(model, llama).identity["template_args"] == wanted


def test_the_row_says_what_was_asked(folder):
    from types import SimpleNamespace

    from suite.evaluation.trial_rows import _template_args

    base = resolve_model(ModelSpec(name=str(folder)), str(folder))
    assert json.loads(_template_args(SimpleNamespace(base=base))) == {"date_string": "26 Jul 2024"}


def test_the_id_of_a_template_is_of_its_text_and_what_it_is_told(folder):
    def id_of(path: Path = folder, **changes) -> str:
        return resolve_model(ModelSpec(name=str(path), **changes), str(path)).encoder.template_id

    first = id_of()
    assert re.fullmatch("chat-[0-9a-f]{8}", first) and id_of() == first
    assert id_of(template_args=TemplateArgs(date_string="26 Jul 2024")) == first
    told = {id_of(template_args=TemplateArgs(**args)) for args in ({"date_string": "27 Jul 2024"}, {"system": "x"})}
    assert len({first, *told}) == 3
    assert id_of(template=Template.PLAIN) == "plain" and id_of(template=Template.BARE) == "bare"
    other = copytree(folder, folder.parent / "other")
    changed = AutoTokenizer.from_pretrained(other)
    changed.chat_template += "{# another #}"
    changed.save_pretrained(other)
    assert id_of(other) not in {first, *told}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{% for part in m.content %}{{ part.text }}{% endfor %}", "question"),
        ("{{ m.content | upper }}", "question"),
        ("{{ m.content if m.role == 'user' else m.content | upper }}", "answer"),
        ("{{ m.content if m.role == 'user' }}", "answer"),
    ],
)
def test_a_template_that_does_not_write_what_it_is_given_is_refused(content, part):
    template = CHATML.replace("{{ m.content }}", content)
    assert template != CHATML
    with pytest.raises(SpecError, match=f"without the text of the {part}, or changes it"):
        Encoder(tokenizer(template), Template.CHAT)
