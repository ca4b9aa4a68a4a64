"""ROUGE with exactly the numbers of Google's rouge-score, which the field's published numbers use, only faster.

The longest common subsequence is computed bit-parallel (Hyyrö 2004): a row of the dynamic-programming table is the bits
of one integer. Words are split by one regular expression, and stems are cached. A test compares the numbers bit by bit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

from tasks.task import Sample

REMEMBERED = 4096
"""Size of the caches of split texts and of overlaps: several variants read the same samples one after another."""

_WORD = re.compile("[a-z0-9]+")


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, in len(b) operations on integers of len(a) bits."""
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    all_places = (1 << len(a)) - 1
    row = all_places  # bit i is 0 where the table's row increases at position i
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & all_places
    return len(a) - row.bit_count()


@lru_cache(REMEMBERED)
def words(text: str, *, stemmed: bool) -> tuple[str, ...]:
    """Runs of a-z and 0-9 in lower case; those of more than three letters are stemmed (Porter)."""
    tokens = _WORD.findall(text.lower())
    if not stemmed:
        return tuple(tokens)
    stem = _stem()
    return tuple(stem(word) if len(word) > 3 else word for word in tokens)


def rouge_l_recall(sample: Sample) -> float | None:
    """Recall with stemming: TOFU's `ROUGE` (arXiv 2401.06121, Sec. 2.2.2)."""
    if sample.generated is None:
        return None
    common, length, _ = _common(sample.reference, sample.generated, stemmed=True)
    return common / length if common else 0.0


def rouge_l_f1(sample: Sample) -> float | None:
    """F-measure without stemming: MUSE's `VerbMem` and `KnowMem` (arXiv 2407.06460, Sec. 3.1)."""
    return _f1(sample, stemmed=False)


def rouge_l_f1_stemmed(sample: Sample) -> float | None:
    """F-measure with stemming: MUSE's numbers as open-unlearning computes them."""
    return _f1(sample, stemmed=True)


def rouge_1_recall(sample: Sample) -> float | None:
    """Share of the reference's words that are generated, in any order, repetitions counted; with stemming."""
    if sample.generated is None:
        return None
    reference = words(sample.reference, stemmed=True)
    common = Counter(reference) & Counter(words(sample.generated, stemmed=True))
    return common.total() / max(len(reference), 1)


def _f1(sample: Sample, *, stemmed: bool) -> float | None:
    if sample.generated is None:
        return None
    common, reference, generated = _common(sample.reference, sample.generated, stemmed=stemmed)
    if not common:
        return 0.0
    precision, recall = common / generated, common / reference
    return 2 * precision * recall / (precision + recall)  # 2 common / (n + m), rounded as rouge-score rounds it


@lru_cache(REMEMBERED)
def _common(reference: str, generated: str, *, stemmed: bool) -> tuple[int, int, int]:
    a, b = words(reference, stemmed=stemmed), words(generated, stemmed=stemmed)
    return longest_common_subsequence(a, b), len(a), len(b)


@cache
def _stem() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # imported here: it costs half a second

    return lru_cache(1 << 16)(PorterStemmer().stem)
