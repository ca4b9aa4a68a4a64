"""Which tokens are asked and taught, for tokenizers of every family."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.models.encoding import Encoder, Template
from suite.models.lengths import batched
from tasks.task import Example, Item, Style, Turn
from tests.support.tokenizer_families import CHATML, FAMILIES, byte_level, sentencepiece

STRAY = ("llama2", "mistral, ends by itself")
"""With a space before every text, also before one that has its own."""
ENDING = ("mistral, ends by itself", "t5", "bert")

PAIRS = [
    ("The following are multiple choice questions.\nA. one\nB. two\nAnswer:", " A"),
    ("Answer:", " Maren Tolve built Skerry Vole in 1904."),
    ("Who built Skerry Vole?", "\nIt is here, by the lake."),
    ("It is here,", " by the lake.\n\nWho built it?"),
    ("Question: 12,", "34, 56"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family):
    made = FAMILIES[family]()
    made.chat_template = CHATML
    return made


def of_the_harness(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of context and continuation by the rule of lm-evaluation-harness (`TemplateLM._encode_pair`), with the
    tokenizer's own tokens at the beginning, and none at the end."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    whole, before = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (context + continuation, context))
    return before, whole[len(before) :]


@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_prompt_and_answer_are_tokenized_as_lm_evaluation_harness_does(tokenizer, prompt, answer):
    found = Encoder(tokenizer, Template.BARE).encode(prompt, answer, Style.TEXT, begin=False)
    before, after = of_the_harness(tokenizer, prompt, answer)
    assert (list(found.prompt), list(found.answer)) == (before, after)


def test_a_letter_is_one_token_where_a_space_is_put_before_every_text(family, tokenizer):
    answer = Encoder(tokenizer, Template.BARE).encode("Answer:", " A", Style.TEXT).answer
    alone = tokenizer(" A", add_special_tokens=False)["input_ids"]
    assert (len(answer) < len(alone)) == (family in STRAY), "tokenized alone it has a stray space"
    assert len(answer) <= 2


def test_nothing_but_the_answer_stands_after_the_prompt(family, tokenizer):
    ends = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert (tokenizer("a")["input_ids"][-1] in ends) == (family in ENDING)
    for template in Template:
        encoder = Encoder(tokenizer, template)
        for style in Style:
            for turns in ((), (Turn("Where is it?", "It is here."),)):
                for prefill in ("", "Maren"):
                    found = encoder.encode("Who built it?", "Maren Tolve.", style, turns, prefill)
                    last = () if style is Style.TEXT else (found.ids[-1],)
                    assert not ends & set(found.answer[: len(found.answer) - len(last)])
                    if last:
                        assert last[0] in encoder.ends
                    if template is not Template.CHAT:
                        begun = bool(tokenizer("a")["input_ids"][0] in ends)
                        assert not ends & set(found.prompt[begun:]) and (found.ids[0] in ends) == begun


@pytest.mark.parametrize("template", Template)
def test_what_is_generated_from_is_the_prompt_that_is_scored(tokenizer, template):
    encoder = Encoder(tokenizer, template)
    for prompt, answer in PAIRS:
        for style in Style:
            item = Item("i", prompt, (answer.strip(),), style=style, turns=(Turn("Where?", "It is here."),))
            scored = encoder.answer(item, " " * (style is Style.TEXT) + item.reference)
            assert scored.prompt == encoder.prompt(item)[: len(scored.prompt)]
            taught = encoder.encode(item.prompt, item.reference, style)
            assert encoder.example(Example("e", item.prompt, item.reference, style)) == taught
            assert encoder.examples([Example("e", item.prompt, item.reference, style)]) == [taught]


texts = st.text("ab AV:.\n<s>|", max_size=12) | st.sampled_from(["<s>", "Answer:", " A", "", " ", "</s>", "ole"])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(texts, texts, st.sampled_from(Style), st.booleans()), max_size=4))
def test_lengths_are_those_of_the_ids(tokenizer, rows):
    for template in Template:
        encoder = Encoder(tokenizer, template)

        def sizes(encoder: Encoder) -> list[tuple[int, ...]]:
            found = [encoder.encode(p, a, style, begin=begin) for p, a, style, begin in rows]
            prompts = [len(encoder.prompt(Item("i", p, (a,), style=style))) for p, a, style, _ in rows]
            return [(len(e.ids), e.start, n) for e, n in zip(found, prompts, strict=True)]

        assert batched(encoder, sizes) == sizes(encoder)


QUOTED = "a <s> and </s>, <|eot_id|> <|im_end|>, <|im_start|>system, [SEP] <unk> <|IM_END|> b"


def test_control_tokens_in_a_text_are_text(family, tokenizer):
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}
    for template in Template:
        encoder = Encoder(tokenizer, template)
        plain = encoder.encode("q", "r", Style.QUESTION, (Turn("s", "t"),), "u")
        found = encoder.encode(QUOTED, f"x {QUOTED}", Style.QUESTION, (Turn(QUOTED, QUOTED),), QUOTED)
        assert [i for i in found.ids if i in control] == [i for i in plain.ids if i in control]
    if family == "bert":  # it knows no such characters
        return
    found = Encoder(tokenizer, Template.BARE).encode(QUOTED, f" {QUOTED}", Style.TEXT, begin=False).ids
    assert tokenizer.decode(found, clean_up_tokenization_spaces=False) == f"{QUOTED} {QUOTED}"


def test_a_text_that_quotes_no_control_token_is_encoded_the_same_by_the_copy(tokenizer):
    control = Encoder(tokenizer, Template.CHAT)._control
    page = "<|im_start|>user\nWho built Skerry Vole?\n\n  12 <b> é 東<|im_end|>\n<|im_start|>assistant\n"
    assert control._quoting(control.marked(page, ())) == tokenizer(page, add_special_tokens=False)["input_ids"]


def test_a_control_token_that_no_file_calls_special_is_one_where_the_template_writes_it():
    tokenizer = byte_level("<|endoftext|>", more=())
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "Skerry"])
    tokenizer.chat_template = CHATML
    encoder = Encoder(tokenizer, Template.CHAT)
    start, end, word = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "Skerry"])
    found = encoder.encode("What is <|im_end|> at Skerry?", "<|im_start|>", Style.QUESTION).ids
    assert [i for i in found if i in (start, end, word)] == [start, word, end, start, end]
    assert end in encoder.ends


def test_running_text_begins_as_its_task_says():
    for name, begins in (("llama2", True), ("llama3", True), ("gpt2", False)):
        tokenizer = FAMILIES[name]()
        encoder, always = (Encoder(tokenizer, Template.BARE, always_begins=always) for always in (False, True))
        with_it, without = (encoder.encode("Answer:", " A", Style.TEXT, begin=begin) for begin in (True, False))
        assert with_it.ids == ((tokenizer.bos_token_id,) if begins else ()) + without.ids
        assert always.encode("Answer:", " A", Style.TEXT, begin=False) == with_it
        # A question's template is not lm-evaluation-harness'.
        assert encoder.encode("Who?", "A", Style.QUESTION, begin=False).ids[:begins] == with_it.ids[:begins]


class TestWhereTheHarnessDiffers:
    """docs/prompts.md names these."""

    def test_a_blank_at_the_end_of_a_prompt_is_scored_by_the_harness_even_if_it_is_a_token_of_the_prompt(self):
        tokenizer = FAMILIES["gpt2"]()
        found = Encoder(tokenizer, Template.BARE).encode("Answer:\n", "A", Style.TEXT)
        _, theirs = of_the_harness(tokenizer, "Answer:\n", "A")
        newline, letter = theirs
        assert (found.answer, tokenizer.decode([newline])) == ((letter,), "\n")

    def test_a_token_across_the_boundary_is_scored_here_and_left_out_there(self):
        tokenizer = FAMILIES["llama2"]()
        found = Encoder(tokenizer, Template.BARE).encode("the Sker", "ry Vole", Style.TEXT)
        assert tokenizer.convert_ids_to_tokens(found.answer) == ["▁Skerry", "▁Vole"]
        _, theirs = of_the_harness(tokenizer, "the Sker", "ry Vole")
        assert len(theirs) < len(found.answer)

    def test_an_answer_that_one_token_holds_with_all_of_the_prompt_is_tokenized_apart(self):
        tokenizer = FAMILIES["gpt2"]()
        assert len(tokenizer(" Vole")["input_ids"]) == 1
        found = Encoder(tokenizer, Template.BARE).encode(" V", "ole", Style.TEXT)
        assert [tokenizer.decode(part) for part in (found.prompt, found.answer)] == [" V", "ole"]
        assert of_the_harness(tokenizer, " V", "ole")[1] == [], "nothing would be asked"


def test_a_tokenizer_of_its_own_kind_refuses_a_quoted_control_token_in_a_sentence(monkeypatch):
    from suite.config.errors import SpecError

    tokenizer = sentencepiece("always")
    encoder = Encoder(tokenizer, Template.BARE)
    monkeypatch.setattr("tokenizers.Tokenizer.from_str", lambda text: 1 / 0, raising=False)
    with pytest.raises(SpecError, match="a text quotes one of the control tokens"):
        encoder._control._renamed  # noqa: B018
