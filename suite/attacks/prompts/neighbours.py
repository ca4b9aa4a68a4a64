"""Which of the texts that are to be kept are most like a question: what an attacker shows or speaks of before it.

Likeness is the share of the words of both that both have (Jaccard 1912). Of a question with its answer the question
counts, of running text its beginning. A text that gives the answer away is no neighbour: the asked fact itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

import numpy as np

from suite.attacks.texts import TELLING
from tasks.task import Example, Item, Style

BEGINNING = 400
"""Characters of running text that are looked at: some sixty words, as many as a long question has."""

_WORD = re.compile(r"\w+")


class Neighbours:
    """Texts, to be looked up by likeness."""

    def __init__(self, texts: Sequence[Example]) -> None:
        self._of_style = {style: _Index([text for text in texts if text.style is style]) for style in Style}
        self._found = cache(self._look_up)

    def of(self, item: Item, count: int) -> tuple[Example, ...]:
        """The `count` texts of the item's style that are most like it, the likest last; of equals the first counts."""
        return self._found(item, count)

    def _look_up(self, item: Item, count: int) -> tuple[Example, ...]:
        found: list[Example] = []
        for text in self._of_style[item.style].by_likeness(item.prompt):
            if len(found) == count:
                break
            if not _tells(text, item):
                found.append(text)
        return tuple(reversed(found))


@lru_cache(2)
def neighbours(texts: tuple[Example, ...]) -> Neighbours:
    """The same for the same texts: every probe of every subject is asked among them."""
    return Neighbours(texts)


class _Index:
    """Texts by the words in them."""

    def __init__(self, texts: Sequence[Example]) -> None:
        self._texts = texts
        words = [_words(_told(text)) for text in texts]
        self._sizes = np.array([len(one) for one in words], dtype=np.int64)
        places: dict[str, list[int]] = defaultdict(list)
        for place, one in enumerate(words):
            for word in one:
                places[word].append(place)
        self._places = {word: np.array(where) for word, where in places.items()}

    def by_likeness(self, question: str) -> Iterator[Example]:
        words = _words(question)
        common = np.zeros(len(self._texts), dtype=np.int64)
        for word in words & self._places.keys():
            common[self._places[word]] += 1
        likeness = common / np.maximum(self._sizes + len(words) - common, 1)
        return (self._texts[place] for place in np.argsort(-likeness, kind="stable"))


def _told(text: Example) -> str:
    return text.prompt if text.style is Style.QUESTION else f"{text.prompt}{text.answer}"[:BEGINNING]


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))


def _tells(text: Example, item: Item) -> bool:
    """Whether a text is about the asked fact, or has its answer in it."""
    answer = item.reference.strip()
    if text.id == item.id or (item.prompt and text.prompt == item.prompt):
        return True
    return len(answer) >= TELLING and answer in f"{text.prompt}{text.answer}"
