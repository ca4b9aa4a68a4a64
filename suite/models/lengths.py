"""Check that every training text and every question fits the model's context, before anything is computed.

Texts are tokenized exactly as the encoder does, but in batches, and each distinct piece only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from suite.config.errors import UnsuitableError
from suite.models.encoding import Encoded, Encoder, PromptText
from tasks.task import Example, Item, Probe, ProbeKind, Style, Task

T = TypeVar("T")

TOGETHER = 4096
"""Texts that are tokenized in one call: the ids of all questions of a large task would take gigabytes."""


@dataclass(frozen=True, slots=True)
class Length:
    """The length of one text for the model.

    Attributes:
        where: the text's file and row, or its id.
        fields: names and token counts of its prompt and its answer.
        total: tokens that the model reads and generates.
    """

    where: str
    fields: tuple[tuple[str, int], ...]
    total: int

    def __str__(self) -> str:
        parts = " and ".join(f"{name} ({tokens} tokens)" for name, tokens in self.fields)
        return f"{self.where}: {parts}: {self.total} tokens"


def check_lengths(task: Task, encoder: Encoder, context: int | None, probes: Iterable[Probe]) -> None:
    """Check that every text fits the model's context.

    Running text that is trained in blocks is cut, and so are the texts of a probe with `max_tokens`; anything else that
    does not fit is an error.

    Args:
        context: the model's context length in tokens; None where it sets no limit.
        probes: those that will be evaluated.

    Raises:
        UnsuitableError: naming the longest text of those that do not fit, its field, its length and the limit.
    """
    if context is None:
        return
    examples = [e for e in (*task.forget_examples(), *task.retain) if not (task.block and e.style is Style.TEXT)]
    probes = list(probes)
    lengths = batched(encoder, lambda counter: [*_example_lengths(counter, examples), *_probe_lengths(counter, probes)])
    too_long = [length for length in lengths if length.total > context]
    if too_long:
        longest = max(too_long, key=lambda length: length.total)
        others = f" (and {len(too_long) - 1} more are too long)" if len(too_long) > 1 else ""
        raise UnsuitableError(
            f"{longest}, but the model reads {context}{others}. Shorten the text, or take a model with a longer "
            "context (tiny has model.tiny.context)"
        )


def batched(encoder: Encoder, measure: Callable[[Encoder], T]) -> T:
    """The result of a function that encodes texts to measure their lengths, with all texts tokenized together.

    The function runs twice: first to collect the texts, then with their lengths.
    """
    counter = _CountingEncoder(encoder)
    measure(counter)
    counter.tokenize()
    return measure(counter)


class _CountingEncoder(Encoder):
    """An encoder that returns the right number of ids; their values are zeros."""

    def __init__(self, encoder: Encoder) -> None:
        vars(self).update(vars(encoder))
        self._counts: dict[tuple[PromptText, str], tuple[int, int]] = {}

    def tokenize(self) -> None:
        """Count the tokens of every text that was encoded so far."""
        for some in _slices(list(self._counts), TOGETHER):
            for pair, encoded in zip(some, self._encoded(some), strict=True):
                self._counts[pair] = len(encoded.ids), encoded.start

    def _joined(self, prompt: PromptText, answer: str) -> Encoded:
        tokens, start = self._counts.setdefault((prompt, answer), (0, 0))
        return Encoded((0,) * tokens, start)


def _slices(pairs: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (pairs[i : i + size] for i in range(0, len(pairs), size))


def _example_lengths(encoder: Encoder, examples: Sequence[Example]) -> Iterator[Length]:
    for example in examples:
        yield _length(example, encoder.example(example))


def _probe_lengths(encoder: Encoder, probes: Sequence[Probe]) -> Iterator[Length]:
    for probe in probes:
        for item in probe.items:
            if probe.kind is ProbeKind.GENERATE:
                prompt = len(encoder.prompt(item))
                fields = ((_prompt_field(item), prompt), ("max_new_tokens", probe.max_new_tokens))
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
    fields = ((_prompt_field(text), prompt), ("answer", len(encoded.ids) - prompt))
    return Length(_where(text, probe), fields, len(encoded.ids))


def _prompt_field(text: Example | Item) -> str:
    return "prompt" if text.style is Style.TEXT else "question"


def _where(text: Example | Item, probe: str) -> str:
    if text.where:
        return text.where
    return f"probe {probe}: item {text.id}" if probe else f"training text {text.id}"
