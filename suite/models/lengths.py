"""Whether every text fits the model, before any work begins: what is taught, and what is asked.

Texts are put before the tokenizer as the encoder puts them, but in batches, and each different piece once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from suite.config.errors import SpecError
from suite.models.encoding import Encoded, Encoder
from tasks.task import Example, Item, Probe, ProbeKind, Style, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Length:
    """How long one text is for the model.

    Attributes:
        where: the text's file and row, or its id.
        fields: its prompt and its answer by the name that they have there, each with its tokens.
        total: tokens that the model reads and writes.
    """

    where: str
    fields: tuple[tuple[str, int], ...]
    total: int

    def __str__(self) -> str:
        parts = " and ".join(f"{name} ({tokens} tokens)" for name, tokens in self.fields)
        return f"{self.where}: {parts}: {self.total} tokens"


def check_lengths(task: Task, encoder: Encoder, context: int | None, probes: Iterable[Probe]) -> None:
    """See that every text fits the model's context.

    Running text that is taught in blocks is cut, and so is what a probe with `max_tokens` asks about; anything else
    that does not fit is an error.

    Args:
        context: longest text that the model reads, in tokens; None where it sets no limit.
        probes: those that will be asked.

    Raises:
        SpecError: naming the longest text of those that do not fit, its field, its length and the limit.
    """
    if context is None:
        return
    taught = [e for e in (*task.forget_examples(), *task.retain) if not (task.block and e.style is Style.TEXT)]
    probes = list(probes)
    lengths = batched(encoder, lambda counting: [*_of_examples(counting, taught), *_of_probes(counting, probes)])
    over = [length for length in lengths if length.total > context]
    if over:
        longest = max(over, key=lambda length: length.total)
        others = f" (and {len(over) - 1} more are too long)" if len(over) > 1 else ""
        raise SpecError(
            f"{longest}, but the model reads {context}{others}. Shorten the text, or take a model with a longer "
            "context (tiny has model.tiny.context)"
        )


def batched(encoder: Encoder, ask: Callable[[Encoder], T]) -> T:
    """The answer to a question about lengths, its texts tokenized together.

    The question is asked twice: first to see which texts it is about, then with their lengths.
    """
    counting = _Counting(encoder)
    ask(counting)
    counting.tokenize()
    return ask(counting)


class _Counting(Encoder):
    """An encoder whose ids are only as many as they should be; what they are does not matter here."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.tokenizer, encoder.template)
        self._counts: dict[tuple[str, bool], int] = {}

    def tokenize(self) -> None:
        """Count the tokens of every text that was asked for so far."""
        for special in (False, True):
            texts = [text for text, how in self._counts if how is special]
            if texts:
                ids = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
                self._counts.update(((text, special), len(one)) for text, one in zip(texts, ids, strict=True))

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return [0] * self._counts.setdefault((text, special), 0)


def _of_examples(encoder: Encoder, examples: Sequence[Example]) -> Iterator[Length]:
    for example in examples:
        yield _length(example, encoder.example(example))


def _of_probes(encoder: Encoder, probes: Sequence[Probe]) -> Iterator[Length]:
    for probe in probes:
        for item in probe.items:
            if probe.kind is ProbeKind.GENERATE:
                prompt = len(encoder.prompt(item))
                fields = ((_prompt(item), prompt), ("max_new_tokens", probe.max_new_tokens))
                yield Length(_where(item, probe.name), fields, prompt + probe.max_new_tokens)
                continue
            answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
            for answer in answers:
                encoded = encoder.answer(item, answer)
                if probe.max_tokens and item.style is Style.TEXT:
                    encoded = encoded.cut(probe.max_tokens)
                yield _length(item, encoded, probe.name)


def _length(text: Example | Item, encoded: Encoded, probe: str = "") -> Length:
    prompt = len(encoded.prompt)
    fields = ((_prompt(text), prompt), ("answer", len(encoded.ids) - prompt))
    return Length(_where(text, probe), fields, len(encoded.ids))


def _prompt(text: Example | Item) -> str:
    return "prompt" if text.style is Style.TEXT else "question"


def _where(text: Example | Item, probe: str) -> str:
    if text.where:
        return text.where
    return f"probe {probe}: item {text.id}" if probe else f"training text {text.id}"
