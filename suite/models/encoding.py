"""From text to token ids: prompt templates, the boundary between prompt and answer, and batches.

Prompt and answer are tokenized together, as a model reads them: a tokenizer may put a space before every text, or merge
characters across the boundary. What ends an answer is appended as ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suite.config.errors import SpecError, UnsuitableError
from suite.models.chat_template import ChatTemplate, Plain
from suite.models.control_tokens import ControlTokens
from suite.models.folder import brief
from suite.models.rehearsal import ANSWER
from suite.models.vocabulary import no_embedding
from tasks.task import Example, Item, Style, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Template(StrEnum):
    """The prompt format of a question."""

    BARE = "bare"
    """The question, a space, the answer."""
    PLAIN = "plain"
    """`Question: ...`, a new line, `Answer:`, a space, the answer."""
    CHAT = "chat"
    """The tokenizer's chat template, the question as the user's turn."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one prompt and its answer. `ids[start:]` are the answer's tokens; only these are scored."""

    ids: tuple[int, ...]
    start: int

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.start]

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.start :]

    def cut(self, tokens: int) -> Encoded:
        """Its first tokens."""
        return Encoded(self.ids[:tokens], min(self.start, tokens))


class Encoder:
    """Encodes examples and questions as ids with a model's tokenizer and template.

    Attributes:
        eos: the tokenizer's end-of-text token.
        ends: the tokens that each end a generated answer: that one, those that the model's generation config lists, and
            the end of a turn in the chat template.
        args: what the chat template is given, by name; empty without one.
        template_id: the template's name; for a chat template `chat-` and a digest of its text and its arguments.

    Args:
        args: of these, those that are not the default.
        ends: further tokens that end an answer.
        always_begins: whether the tokenizer's beginning of a text is put before a prompt that is to have none, too.
        rows: embeddings that the model has; None where that is not known.

    Raises:
        SpecError: there are arguments, and no chat template is to be used.
        UnsuitableError: the tokenizer lacks an end-of-text token, or the chat template that is to be used, or that
            template fails, does not end, takes no such argument or lets the model think first.
        ModelError: the template writes a token of which the model has no embedding. Whatever encodes a text raises it
            where the text has such a token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        args: Mapping[str, Plain] | None = None,
        ends: Iterable[int] = (),
        always_begins: bool = False,
        rows: int | None = None,
    ) -> None:
        which = f"the tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"
        if template is Template.CHAT and not tokenizer.chat_template:
            raise UnsuitableError(f"model.template: {which} has no chat template. Use model.template=plain")
        if args and template is not Template.CHAT:
            raise SpecError(
                f"model.template_args: {', '.join(args)}: with model.template={template} no chat template reads them. "
                "Take them out, or use model.template=chat"
            )
        self._chat = ChatTemplate(tokenizer, args or {}) if template is Template.CHAT else None
        if tokenizer.eos_token_id is None:
            raise UnsuitableError(f"model: {which} has no end-of-text token, so an answer could not end")
        self.tokenizer = tokenizer
        self.template = template
        self.args: Mapping[str, Plain] = self._chat.args if self._chat else {}
        self.template_id = f"chat-{self._chat.digest}" if self._chat else str(template)
        self.always_begins = always_begins
        self.rows = rows
        self.eos: int = tokenizer.eos_token_id
        self._control = ControlTokens(tokenizer, self._chat.written if self._chat else "")
        self._begin = tuple(self._known(_beginning(tokenizer), where="the beginning of every text"))
        if self._chat:
            written = self._control.marked(self._chat.written, ())
            self._known(self._control.encoded([written])[0], where="the chat template")
        self.ends = frozenset((self.eos, *ends))
        self._end = self._turn_end(self._chat) if self._chat else (self.eos,)
        self.ends |= {self._end[-1]}

    def encode(
        self,
        prompt: str,
        answer: str,
        style: Style,
        turns: Sequence[Turn] = (),
        prefill: str = "",
        begin: bool = True,
    ) -> Encoded:
        """Ids of prompt and answer. A question's answer has its end after it; running text does not.

        Args:
            turns: the conversation so far, oldest turn first; for running text, the documents before this one.
            prefill: the beginning of the answer, as the last part of the prompt.
            begin: whether running text begins with what the tokenizer puts before a text.
        """
        text, answer = self._text(prompt, answer, style, turns, prefill, begin)
        return self._ended(self._joined(text, answer), style)

    def answer(self, item: Item, answer: str) -> Encoded:
        """Ids of an item's complete prompt (turns and prefill included) and one of its answers."""
        return self.encode(item.prompt, answer, item.style, item.turns, item.prefill, item.begin)

    def example(self, example: Example) -> Encoded:
        return self.encode(example.prompt, example.answer, example.style)

    def examples(self, texts: Sequence[Example], block: int | None = None) -> list[Encoded]:
        """The texts as training sequences.

        Args:
            block: running text is joined over documents by a blank line and cut into blocks of so many tokens, each of
                which predicts all but its first token; by default each text is a sequence of its own.
        """
        alone = [text for text in texts if block is None or text.style is not Style.TEXT]
        pairs = [self._text(text.prompt, text.answer, text.style) for text in alone]
        found = [self._ended(joined, text.style) for joined, text in zip(self._encoded(pairs), alone, strict=True)]
        if block is None:
            return found
        joined = "\n\n".join(f"{text.prompt}{text.answer}" for text in texts if text.style is Style.TEXT)
        ids = self._ids(joined) if joined else []
        # A last block of one token would have nothing to predict.
        return found + [Encoded(tuple(ids[i : i + block]), 1) for i in range(0, len(ids) - 1, block)]

    def prompt(self, item: Item) -> tuple[int, ...]:
        """Ids of an item's prompt, for generation: the prompt's own, also where an answer's first token would hold a
        part of it."""
        text, _ = self._text(item.prompt, "", item.style, item.turns, item.prefill, item.begin)
        return self._joined(text, "").ids or self.answer(item, "").prompt

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Generated text without special tokens, cut at the first stop text and stripped."""
        text = self._text_of(ids)
        return text[: min((text.index(s) for s in stop if s in text), default=len(text))].strip()

    def stops(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the newest tokens complete a stop text; call it after every token."""
        if not stop:
            return False
        # A token has at least one byte, so this many hold the longest stop text; one more, as some decoders strip the
        # first one.
        reach = max(len(s.encode()) for s in stop) + 1
        text = self._text_of(ids[-reach:])
        return any(s in text for s in stop)

    def stop_ids(self, stop: Sequence[str]) -> frozenset[int]:
        """The tokens that each contain a complete stop text."""
        return frozenset(i for i, text in enumerate(self._vocabulary) if any(s in text for s in stop))

    @cached_property
    def _vocabulary(self) -> list[str]:
        """The text of each token, decoded alone."""
        return self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))], skip_special_tokens=True)

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text: so many tokens, special tokens counted but not decoded."""
        return self._text_of(self._joined(PromptText(text, True), "").ids[:tokens])

    def _text_of(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))  # one text, not a list of them

    def _text(
        self,
        prompt: str,
        answer: str,
        style: Style,
        turns: Sequence[Turn] = (),
        prefill: str = "",
        begin: bool = True,
    ) -> tuple[PromptText, str]:
        """The text of a prompt, and that of the answer after it."""
        if style is Style.TEXT:
            history = "".join(f"{turn.question}{turn.answer}\n\n" for turn in turns)
            return PromptText(f"{history}{prompt}{prefill}", begin or self.always_begins), answer
        text = self._question(prompt, turns)
        lead = self._chat.lead if self._chat else " "
        if prefill:
            return replace(text, text=f"{text.text}{lead}{prefill}"), f" {answer}"
        return text, f"{lead}{answer}"

    def _question(self, question: str, turns: Sequence[Turn]) -> PromptText:
        if self._chat:
            pieces: list[str] = []
            messages = [
                {"role": role, "content": self._control.hidden(content, pieces)}
                for turn in turns
                for role, content in (("user", turn.question), ("assistant", turn.answer))
            ]
            messages.append({"role": "user", "content": self._control.hidden(question, pieces)})
            system = [{**turn, "content": self._control.hidden(turn["content"], pieces)} for turn in self._chat.system]
            text = self._control.marked(self._chat.render([*system, *messages]) + self._chat.header, pieces)
            return PromptText(text, False)  # the template writes its own special tokens
        if self.template is Template.PLAIN:
            history = "".join(f"Question: {turn.question}\nAnswer: {turn.answer}\n\n" for turn in turns)
            return PromptText(f"{history}Question: {question}\nAnswer:", True)
        history = "".join(f"{turn.question} {turn.answer}\n" for turn in turns)
        return PromptText(f"{history}{question}", True)

    def _ids(self, text: str) -> Sequence[int]:
        return self._known(self._control.encoded([text])[0], text)

    def _known(self, ids: Sequence[int], text: str = "", where: str = "") -> Sequence[int]:
        """The ids of a text, if the model has an embedding of each."""
        if self.rows is not None and max(ids, default=0) >= self.rows:
            where = where or f"the text {brief(self._control.unmarked(text))}"
            raise no_embedding(max(ids), self.rows, self.tokenizer, where)
        return ids

    def _ended(self, joined: Encoded, style: Style) -> Encoded:
        ids = joined.ids if style is Style.TEXT else (*joined.ids, *self._end)
        # Without a prompt nothing precedes the first token, so it cannot be predicted.
        return Encoded(ids, joined.start or min(1, len(ids)))

    def _joined(self, prompt: PromptText, answer: str) -> Encoded:
        """Ids of prompt and answer, tokenized as one text; see `_encoded`."""
        return self._encoded([(prompt, answer)])[0]

    def _encoded(self, pairs: Sequence[tuple[PromptText, str]]) -> list[Encoded]:
        """Ids of prompts and their answers, each pair tokenized as one text.

        The answer begins where the ids of the whole first differ from those of the prompt alone: after all of these,
        or at a token that holds the end of the prompt and the beginning of the answer. What the tokenizer puts after a
        text is left out.
        """
        whole = self._control.encoded([prompt.text + answer for prompt, answer in pairs])
        prompts = {prompt.text: () for prompt, answer in pairs if answer}
        alone = dict(zip(prompts, self._control.encoded(list(prompts)), strict=True))
        found = []
        for (prompt, answer), ids in zip(pairs, whole, strict=True):
            begin = self._begin if prompt.begin else ()
            before = alone[prompt.text] if answer else ids
            start = _common(before, ids)
            if before and not start and not begin:  # one token holds them both, and nothing predicts it
                ids, start = [*before, *self._ids(answer)], len(before)
            self._known(ids, prompt.text + answer)
            found.append(Encoded((*begin, *ids), len(begin) + start))
        return found

    def _turn_end(self, chat: ChatTemplate) -> tuple[int, ...]:
        """Ids after an answer in the chat template, up to the one that ends the turn; end-of-text where none does.

        Some templates end a turn with nothing but the beginning of the user's next one. That ends the answer where the
        generation config says so, or where it differs from how the first turn begins.
        """
        headers = self._ids(self._control.marked(chat.opening, ()))
        for ending, openings in zip(chat.endings, ((), headers), strict=True):
            ids = self._joined(PromptText(ANSWER, False), self._control.marked(ending, ())).answer
            last = next((place for place, i in enumerate(ids) if i in self._control.ids), None)
            if last is not None and (ids[last] in self.ends or ids[last] not in openings):
                return ids[: last + 1]
        return (self.eos,)


@dataclass(frozen=True, slots=True)
class PromptText:
    """The text of a prompt.

    Attributes:
        text: its control tokens are marked.
        begin: whether what the tokenizer puts before a text precedes it.
    """

    text: str
    begin: bool


def _beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that a tokenizer puts before every text. Those after it would stand between a prompt and its answer."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return next((tuple(whole[:i]) for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), ())


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Tokens:
    """A right-padded batch of examples. Causal attention never looks right, so no attention mask is needed.

    Attributes:
        ids: (sequences, length).
        answer: (sequences, length) bool, true at the answer's tokens.
        start: first position of any answer.
        rows: index of each sequence in the data set it was drawn from.
    """

    ids: Tensor
    answer: Tensor
    start: int
    rows: tuple[int, ...] = ()

    @classmethod
    def collate(
        cls, encoded: Sequence[Encoded], device: torch.device | str = "cpu", rows: Iterable[int] = ()
    ) -> Tokens:
        length = max(len(e.ids) for e in encoded)
        ids = torch.zeros(len(encoded), length, dtype=torch.long)
        answer = torch.zeros(len(encoded), length, dtype=torch.bool)
        for row, e in enumerate(encoded):
            ids[row, : len(e.ids)] = torch.tensor(e.ids)
            answer[row, e.start : len(e.ids)] = True
        start = min(e.start for e in encoded)
        return cls(ids.to(device), answer.to(device), start, tuple(rows))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Positions that a forward pass computes, padding included."""
        return self.ids.numel()

    @property
    def text(self) -> Tensor:
        """(sequences, length) bool, false at padding alone: a text ends with its answer."""
        return self.answer.flip(-1).cumsum(-1).flip(-1) > 0
