"""From text to token ids: prompt templates, the boundary between prompt and answer, and batches.

Prompt and answer are tokenized separately and joined as ids, so that no token merges across the boundary and no decoded
text is tokenized twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suite.config.errors import SpecError
from suite.models.folder import one_line
from suite.models.rehearsal import rehearse_template
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

    Raises:
        SpecError: the tokenizer lacks an end-of-text token, or the chat template that is to be used, or that template
            fails or does not end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        which = f"the tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"
        if template is Template.CHAT and not tokenizer.chat_template:
            raise SpecError(f"model.template: {which} has no chat template. Use model.template=plain")
        if template is Template.CHAT:
            rehearse_template(tokenizer)
        if tokenizer.eos_token_id is None:
            raise SpecError(f"model: {which} has no end-of-text token, so an answer could not end")
        self.tokenizer = tokenizer
        self.template = template
        self.eos: int = tokenizer.eos_token_id

    def encode(self, prompt: str, answer: str, style: Style, turns: Sequence[Turn] = (), prefill: str = "") -> Encoded:
        """Ids of prompt and answer. A question's answer ends with end-of-text; running text does not.

        Args:
            turns: the conversation so far, oldest turn first; for running text, the documents before this one.
            prefill: the beginning of the answer, as the last part of the prompt.
        """
        mid_line = bool(prefill) or self.template is not Template.CHAT  # an answer in mid-line begins with a space
        if style is Style.TEXT:
            history = "".join(f"{turn.question}{turn.answer}\n\n" for turn in turns)
            head, tail = self._ids(f"{history}{prompt}", special=True), self._ids(answer)
        else:
            head = self._question(prompt, turns)
            tail = [*self._ids(f" {answer}" if mid_line else answer), self.eos]
        if prefill:
            spaced = style is Style.QUESTION and self.template is not Template.CHAT
            head = [*head, *self._ids(f" {prefill}" if spaced else prefill)]
        if not head:  # without a prompt nothing precedes the first token, so it cannot be predicted
            head, tail = tail[:1], tail[1:]
        return Encoded((*head, *tail), len(head))

    def answer(self, item: Item, answer: str) -> Encoded:
        """Ids of an item's complete prompt (turns and prefill included) and one of its answers."""
        return self.encode(item.prompt, answer, item.style, item.turns, item.prefill)

    def example(self, example: Example) -> Encoded:
        return self.encode(example.prompt, example.answer, example.style)

    def examples(self, texts: Sequence[Example], block: int | None = None) -> list[Encoded]:
        """The texts as training sequences.

        Args:
            block: running text is joined over documents by a blank line and cut into blocks of so many tokens, each of
                which predicts all but its first token; by default each text is a sequence of its own.
        """
        if block is None:
            return [self.example(text) for text in texts]
        questions = [self.example(text) for text in texts if text.style is not Style.TEXT]
        joined = "\n\n".join(f"{text.prompt}{text.answer}" for text in texts if text.style is Style.TEXT)
        ids = self._ids(joined) if joined else []
        # A last block of one token would have nothing to predict.
        return questions + [Encoded(tuple(ids[i : i + block]), 1) for i in range(0, len(ids) - 1, block)]

    def prompt(self, item: Item) -> tuple[int, ...]:
        """Ids of an item's prompt, for generation."""
        return self.answer(item, "").prompt

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Generated text without special tokens, cut at the first stop text and stripped."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text[: min((text.index(s) for s in stop if s in text), default=len(text))].strip()

    def stops(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the newest tokens complete a stop text; call it after every token."""
        if not stop:
            return False
        # A token has at least one byte, so this many hold the longest stop text; one more, as some decoders strip the
        # first one.
        reach = max(len(s.encode()) for s in stop) + 1
        text = self.tokenizer.decode(ids[-reach:], skip_special_tokens=True)
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
        return self.tokenizer.decode(self._ids(text, special=True)[:tokens], skip_special_tokens=True)

    def _question(self, question: str, turns: Sequence[Turn]) -> list[int]:
        match self.template:
            case Template.CHAT:
                messages = [
                    {"role": role, "content": content}
                    for turn in turns
                    for role, content in (("user", turn.question), ("assistant", turn.answer))
                ]
                messages.append({"role": "user", "content": question})
                return self._ids(self._rendered(messages))  # the template writes its own special tokens
            case Template.PLAIN:
                history = "".join(f"Question: {turn.question}\nAnswer: {turn.answer}\n\n" for turn in turns)
                return self._ids(f"{history}Question: {question}\nAnswer:", special=True)
            case Template.BARE:
                history = "".join(f"{turn.question} {turn.answer}\n" for turn in turns)
                return self._ids(f"{history}{question}", special=True)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise whatever it likes
            raise SpecError(
                f"model.template: the chat template refuses a conversation of {len(messages)} turns: "
                f"{one_line(error)}. Use model.template=plain"
            ) from None

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]


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
