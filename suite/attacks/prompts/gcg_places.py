"""Optimised texts in their prompts: before or after a question, as text that tokenizes back to its own ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suite.config.errors import UnsuitableError
from suite.models.encoding import Encoded, Encoder
from tasks.task import Item, Probe, Style

Ids = tuple[int, ...]

STARTS = ("x", "!", "a")
"""Words that a search may start from, repeated: the first one that tokenizes back to its own ids is used."""

MARKS = ("x", "z")
"""Two texts without a common token: prompts with one and the other differ exactly where the text is."""


@dataclass(frozen=True, slots=True)
class SplitPrompt:
    """The ids of a prompt before and after the text, and of the answer that the model is to give."""

    before: Ids
    after: Ids
    target: Ids

    def around(self, ids: Ids) -> Encoded:
        """The whole prompt with this text, and the target as its answer."""
        head = (*self.before, *ids, *self.after)
        return Encoded((*head, *self.target), len(head))


@dataclass(frozen=True)
class Question:
    """A question to which a text can be added.

    Attributes:
        render: gives the ids of the question with a text.
    """

    encoder: Encoder
    render: Callable[[str], Ids]
    prompt: SplitPrompt

    @classmethod
    def of(cls, item: Item, encoder: Encoder, probe: Probe | None = None, before: bool = False) -> Question:
        """
        Args:
            probe: the item's probe, which may score only the beginning of the answer.
            before: as for `placed`.
        """

        reference = _scored_reference(item, encoder, probe)

        def asked(text: str) -> Encoded:
            # With the answer, whose first token may hold the prompt's end.
            return encoder.answer(placed(item, text, before), reference)

        one, other = asked(MARKS[0]), asked(MARKS[1]).prompt
        first = _common(one.prompt, other)
        last = _common(one.prompt[::-1], other[::-1])
        answer = one.answer[: len(target(item, encoder, probe))]
        split = SplitPrompt(one.prompt[:first], one.prompt[len(one.prompt) - last :], answer)
        return cls(encoder, lambda text: asked(text).prompt, split)

    def text(self, ids: Ids) -> str:
        return self.encoder.tokenizer.batch_decode([list(ids)], clean_up_tokenization_spaces=False)[0]

    def reads_back(self, ids: Ids) -> bool:
        """Whether the text of these ids tokenizes back to them in the prompt, with the ids around it unchanged."""
        return self.render(self.text(ids)) == (*self.prompt.before, *ids, *self.prompt.after)


def placed(item: Item, text: str, before: bool = False) -> Item:
    """The item with a text on its own line, after the question or before it; always before running text."""
    before = before or item.style is Style.TEXT
    return replace(item, prompt=f"{text}\n{item.prompt}" if before else f"{item.prompt}\n{text}")


def start(tokens: int, questions: Sequence[Question]) -> Ids:
    """A text of `tokens` tokens, one word repeated, that every question reads back.

    Raises:
        UnsuitableError: there is none.
    """
    first = questions[0]
    for word in STARTS:
        ids = first.render(" ".join([word] * tokens))[len(first.prompt.before) :][:tokens]
        if len(ids) == tokens and read_back(questions, ids):
            return ids
    raise UnsuitableError(
        f"attacks: gcg: tokens={tokens}: the tokenizer reads no text of so many tokens back. Use another"
    )


def read_back(questions: Sequence[Question], ids: Ids) -> bool:
    """Whether every question reads the text of these ids back."""
    return all(question.reads_back(ids) for question in questions)


def target(item: Item, encoder: Encoder, probe: Probe | None = None) -> Ids:
    """Tokens of the correct answer, as far as the probe scores it."""
    encoded = encoder.answer(item, _scored_reference(item, encoder, probe))
    if probe and probe.max_tokens and item.style is Style.TEXT:
        encoded = encoded.cut(probe.max_tokens)
    return encoded.answer


def _scored_reference(item: Item, encoder: Encoder, probe: Probe | None) -> str:
    """The correct answer, as far as the probe scores it."""
    if probe and probe.max_reference_tokens:
        return encoder.cut(item.reference, probe.max_reference_tokens)
    return item.reference


def printable(encoder: Encoder, size: int) -> Tensor:
    """Tokens of printable ASCII, without special tokens: (size,) bool, on the CPU.

    Args:
        size: rows of the embedding table, which may be more than the tokenizer's tokens.
    """
    tokenizer = encoder.tokenizer
    known = range(min(size, len(tokenizer)))
    texts = tokenizer.batch_decode([[i] for i in known], clean_up_tokenization_spaces=False)
    special = set(tokenizer.all_special_ids)
    allowed = torch.zeros(size, dtype=torch.bool)
    for i, text in zip(known, texts, strict=True):
        allowed[i] = bool(text) and text.isascii() and text.isprintable() and i not in special
    return allowed


def _common(one: Ids, other: Ids) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
