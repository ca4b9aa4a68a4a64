"""A turn ends where the model was taught to end it: in what is taught and scored, and in what is generated."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from suite.config.errors import ModelError
from suite.engines.questions import Questions
from suite.engines.transformers.decoding import GenerationRequest, decode, decode_plainly
from suite.engines.transformers.engine import TransformersEngine
from suite.models.encoding import Encoder, Template
from suite.models.finetuning import finetune
from suite.models.loading import resolve_model, save
from suite.models.settings import ModelSpec
from tasks.task import Example, Item, Probe, ProbeKind, Split, Style, Subset, Turn
from tests.support.tokenizer_families import CHATML, byte_level, sentencepiece

GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GLM = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WORDS = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

TURNS = ("<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "<|start|>", "<|channel|>")
ALL = (*TURNS, "<|message|>", "<|im_start|>", "<|im_end|>")


def encoder(template: str, ends=(), prefix: str | None = None) -> Encoder:
    tokenizer = sentencepiece(prefix, more=ALL)
    tokenizer.chat_template = template
    return Encoder(tokenizer, Template.CHAT, ends=tokenizer.convert_tokens_to_ids(list(ends)))


def words(encoder: Encoder, ids) -> str:
    return encoder.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (GEMMA, "<start_of_turn>model\n", "one two<end_of_turn>"),
        (PHI, "<|end|>\n<|assistant|>\n", "one two<|end|>"),
        (LLAMA2, "[INST] A? [/INST]", " one two </s>"),
        (ZEPHYR, "</s>\n<|assistant|>\n", "one two</s>"),
        (WORDS, "\nASSISTANT:", " one two</s>"),
        (HARMONY, "<|start|>assistant<|channel|>final<|message|>", "one two<|end|>"),
        (NO_PROMPT, "<|im_end|>\n<|im_start|>assistant\n", "one two<|im_end|>"),
    ],
    ids=["gemma", "phi", "llama2", "zephyr", "words", "harmony", "no generation prompt"],
)
def test_an_answer_stands_in_the_template_as_the_template_puts_it(template, prompt, answer):
    one = encoder(template)
    found = one.encode("A?", "one two", Style.QUESTION)
    assert words(one, found.prompt).endswith(prompt)
    assert words(one, found.answer) == answer
    assert found.ids[-1] in one.ends and one.eos in one.ends
    # And so does the template, when the answer is a turn of the conversation.
    talk = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "one two"}]
    whole = one.tokenizer.apply_chat_template(talk, tokenize=False)
    ids = one.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert list(found.ids) == ids[: len(found.ids)] or template is WORDS


@pytest.mark.parametrize("prefix", ["always", "first"])
def test_a_space_before_an_answer_is_the_templates(prefix):
    one = encoder(LLAMA2, prefix=prefix)
    talk = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "one two"}]
    ids = one.tokenizer(one.tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False)["input_ids"]
    found = one.encode("A?", "one two", Style.QUESTION)
    assert list(found.ids) == ids
    assert one.tokenizer.convert_ids_to_tokens(found.answer)[:2] == ["▁one", "▁two"]
    given = one.encode("A?", "two", Style.QUESTION, prefill="one")
    assert list(given.ids) == ids and one.tokenizer.convert_ids_to_tokens(given.answer)[0] == "▁two"


def test_a_turn_that_only_the_next_one_ends():
    """GLM's models write <|user|> when they are done, and their generation config says so."""
    listed, unlisted = encoder(GLM, ["<|user|>"]), encoder(GLM)
    assert words(listed, listed.encode("A?", "one", Style.QUESTION).answer) == "one<|user|>"
    assert words(unlisted, unlisted.encode("A?", "one", Style.QUESTION).answer) == "one</s>"


def test_without_a_chat_template_the_tokenizers_own_token_ends_an_answer():
    tokenizer = byte_level("<|endoftext|>", more=("<|im_end|>",))
    for template in (Template.BARE, Template.PLAIN):
        one = Encoder(tokenizer, template)
        assert one.ends == {one.eos} and one.encode("A?", "one", Style.QUESTION).answer[-1] == one.eos


def test_running_text_has_no_end():
    one = encoder(GEMMA)
    assert not set(one.encode("A?", " one", Style.TEXT, (Turn("a", "b"),)).ids[1:]) & one.ends


def model(tokenizer, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **changes)).eval()


@pytest.mark.parametrize(
    ("file", "ends"),
    [
        ({"eos_token_id": [9, 7]}, {9, 7}),
        ({"eos_token_id": 9}, {9}),
        ({"eos_token_id": None}, set()),
        ({}, set()),
        (None, {5}),
        ({"eos_token_id": [-1, 9]}, {9}),
    ],
)
def test_the_generation_config_says_what_ends_an_answer(tmp_path, file, ends):
    tokenizer = sentencepiece(None, more=ALL)
    tokenizer.chat_template = GEMMA
    save(model(tokenizer, eos_token_id=5), tokenizer, tmp_path)
    config = tmp_path / "generation_config.json"
    config.unlink(missing_ok=True)
    if file is not None:
        config.write_text(json.dumps(file))
    found = resolve_model(ModelSpec(name=str(tmp_path)), str(tmp_path)).encoder
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert found.ends == ends | {found.eos, end}


@pytest.mark.parametrize("wrong", ["2", [2, "x"], True, [2.0], {"a": 1}])
def test_what_is_no_token_is_refused(tmp_path, wrong):
    tokenizer = sentencepiece(None, more=ALL)
    save(model(tokenizer), tokenizer, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(ModelError, match=r"generation_config.json: eos_token_id has .* no token's id"):
        resolve_model(ModelSpec(name=str(tmp_path), template=Template.PLAIN), str(tmp_path))


def test_every_one_of_the_ends_stops_a_generation():
    tokenizer = sentencepiece(None, more=ALL)
    made = model(tokenizer)
    requests = [GenerationRequest((1, 7, 9 + i), 12) for i in range(4)]
    with torch.inference_mode():
        free = [c.new for c in decode(made, requests, ends=(), row_tokens=64, batch_tokens=512)]
        ends = {free[0][3], free[1][5], free[2][0]}
        wanted = [new[: next((n for n, token in enumerate(new) if token in ends), len(new))] for new in free]
        assert len({len(new) for new in wanted}) > 1
        found = decode(made, requests, ends=ends, row_tokens=64, batch_tokens=512)
        assert [c.new for c in found] == wanted
        assert decode_plainly(made, requests, ends=ends, batch_tokens=512) == wanted


def test_a_model_that_was_taught_its_turns_answers_word_for_word(tmp_path):
    """It ends with <end_of_turn>, which is not the tokenizer's end-of-text token."""
    tokenizer = sentencepiece(None, more=ALL)
    tokenizer.chat_template = GEMMA
    made = model(tokenizer)
    save(made, tokenizer, tmp_path)
    base = resolve_model(ModelSpec(name=str(tmp_path)), str(tmp_path))
    examples = [Example(f"{n}", f"Where is lake {n}?", f"Lake {n} is here, by the lake {n}.") for n in range(4)]
    taught = made.train()
    for _ in finetune(taught, base.encoder.examples(examples), steps=150, lr=5e-3, batch_size=4, seed=0):
        pass
    save(taught, tokenizer, tmp_path)
    items = tuple(Item(e.id, e.prompt, (e.answer,)) for e in examples)
    probe = Probe("said", Subset.FORGET, Split.TEST, ProbeKind.GENERATE, items, (), max_new_tokens=40)
    engine = TransformersEngine(base.encoder, dtype="float32", device=torch.device("cpu"))
    new = engine.continuations(base.checkpoint, Questions(base.encoder, [probe]))
    assert [base.encoder.decode(ids) for ids in new] == [e.answer for e in examples]
    assert max(map(len, new)) < 40


def test_both_engines_are_given_the_same_ends():
    pytest.importorskip("ray")
    from suite.engines.vllm.engine import VllmEngine

    one = encoder(GEMMA, ["<|im_end|>"])
    probe = Probe("said", Subset.FORGET, Split.TEST, ProbeKind.GENERATE, (Item("i", "A?", ("one",)),), ())
    vllm = VllmEngine.__new__(VllmEngine)
    vllm.encoder = one
    (prompt,) = vllm._prompts(Questions(one, [probe]))
    assert set(prompt.stop) == one.ends
    reply = type("Reply", (), {"continuations": [[9, end] for end in sorted(one.ends)] + [[9, 8]]})()
    assert vllm._continuations(reply) == [[9]] * len(one.ends) + [[9, 8]]


def test_chatml_ends_turns_with_a_token_that_may_be_the_tokenizers_own():
    tokenizer = byte_level("<|im_end|>")
    tokenizer.chat_template = CHATML
    one = Encoder(tokenizer, Template.CHAT)
    assert one.ends == {one.eos}
    assert one.encode("A?", "one", Style.QUESTION).answer[-1] == one.eos
