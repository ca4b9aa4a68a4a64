"""Retain texts that are most similar to a question, which an attacker shows or talks about before asking it.

Similarity is the Jaccard index of the sets of words (Jaccard 1912). Of a question with its answer the question's words
count, of running text those of its beginning. A text that reveals the answer is never a neighbour.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

import numpy as np

from suite.attacks.texts import MIN_DISTINCTIVE
from tasks.task import Example, Item, Style

BEGINNING = 400
"""Characters of running text whose words count: about sixty words, as many as a long question has."""

_WORD = re.compile(r"\w+")


class Neighbours:
    """Texts that can be looked up by similarity to an item."""

    def __init__(self, texts: Sequence[Example]) -> None:
        self._by_style = {style: _Index([text for text in texts if text.style is style]) for style in Style}
        self._cached_look_up = cache(self._look_up)

    def of(self, item: Item, count: int) -> tuple[Example, ...]:
        """The `count` most similar texts of the item's style, the most similar last; among equals the first wins."""
        return self._cached_look_up(item, count)

    def _look_up(self, item: Item, count: int) -> tuple[Example, ...]:
        nearest: list[Example] = []
        for text in self._by_style[item.style].by_similarity(item.prompt):
            if len(nearest) == count:
                break
            if not _reveals_answer(text, item):
                nearest.append(text)
        return tuple(reversed(nearest))


@lru_cache(2)
def neighbours(texts: tuple[Example, ...]) -> Neighbours:
    """A shared index of these texts, cached because every probe of every subject uses it."""
    return Neighbours(texts)


class _Index:
    """An inverted index from words to the texts that contain them."""

    def __init__(self, texts: Sequence[Example]) -> None:
        self._texts = texts
        word_sets = [_words(_compared_part(text)) for text in texts]
        self._sizes = np.array([len(words) for words in word_sets], dtype=np.int64)
        positions: dict[str, list[int]] = defaultdict(list)
        for position, words in enumerate(word_sets):
            for word in words:
                positions[word].append(position)
        self._positions = {word: np.array(listed) for word, listed in positions.items()}

    def by_similarity(self, question: str) -> Iterator[Example]:
        words = _words(question)
        common = np.zeros(len(self._texts), dtype=np.int64)
        for word in words & self._positions.keys():
            common[self._positions[word]] += 1
        similarity = common / np.maximum(self._sizes + len(words) - common, 1)
        return (self._texts[position] for position in np.argsort(-similarity, kind="stable"))


def _compared_part(text: Example) -> str:
    return text.prompt if text.style is Style.QUESTION else f"{text.prompt}{text.answer}"[:BEGINNING]


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _reveals_answer(text: Example, item: Item) -> bool:
    """Whether a text is about the item's own fact, or contains its answer."""
    answer = item.reference.strip()
    if text.id == item.id or (item.prompt and text.prompt == item.prompt):
        return True
    return len(answer) >= MIN_DISTINCTIVE and answer in f"{text.prompt}{text.answer}"
