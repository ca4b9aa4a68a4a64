"""ROUGE with exactly the numbers of Google's rouge-score, which the field's published numbers use, only faster.

The longest common subsequence is computed bit-parallel (Hyyrö 2004): a row of the dynamic-programming table is the bits
of one integer. Words are split by one regular expression, and stems are cached. A test compares the numbers bit by bit.

rouge-score knows the letters a to z and the digits 0 to 9, and nothing else. In a Russian or Chinese reference it sees
no words, so that even the right answer scores 0, or only a year, so that a refusal with that year scores 1. There the
published variants have no number (`legible`). The variants in `_unicode` read every script.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache
from typing import Any, Protocol

from tasks.task import Sample

REMEMBERED = 4096
"""Size of the caches of split texts and of overlaps: several variants read the same samples one after another."""

UNICODE = {
    "rougeL_recall": "rougeL_recall_unicode",
    "rougeL_f1": "rougeL_f1_unicode",
    "rougeL_f1_stemmed": "rougeL_f1_unicode",
    "rouge1_recall": "rougeL_recall_unicode",
}
"""The variant that reads every script, by the metric that reads a to z and 0 to 9."""

READS = {
    **{
        name: f"a generated text, and a reference of which at least half of the letters and digits are a to z and 0 to "
        f"9; {variant} reads every script"
        for name, variant in UNICODE.items()
    },
    **dict.fromkeys(UNICODE.values(), "a generated text, and a reference that has a letter or a digit"),
}
"""What a metric needs to have a number, for messages."""

_WORD = re.compile("[a-z0-9]+")


class Split(Hashable, Protocol):
    """Divides a text into words. Hashable, because overlaps are remembered by it."""

    def __call__(self, text: str, *, stemmed: bool) -> tuple[str, ...]: ...


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
    return tuple([stem(word) if len(word) > 3 else word for word in tokens])


@lru_cache(REMEMBERED)
def unicode_words(text: str, *, stemmed: bool) -> tuple[str, ...]:
    """Runs of letters, marks and digits of any script, in compatibility form (NFKC) and without case.

    A letter that Unicode's word boundaries (UAX #29) do not join with its neighbours is a word by itself, with its
    marks: Chinese characters, hiragana, Thai, Lao, Khmer, Burmese, which are written without spaces. Words of a-z and
    0-9 are stemmed as `words` stems them; of a text in ASCII, these are the words of `words`.
    """
    if text.isascii():
        return words(text, stemmed=stemmed)
    ignorable, word = _patterns()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    tokens = word.findall(ignorable.sub("", folded))
    return tuple([words(token, stemmed=stemmed)[0] if token.isascii() else token for token in tokens])


@lru_cache(REMEMBERED)
def legible(reference: str) -> bool:
    """Whether rouge-score can read a reference: half of its letters and digits, or more, are a to z and 0 to 9.

    A reference without any letter or digit is not legible, a blank one is: nothing is in it that could be missed. In
    TOFU, RWKU and the published logs, the smallest share of a reference is 0.75 (the test reads them all).
    """
    if reference.isascii():
        return bool(_WORD.search(reference.lower())) or not reference.strip()
    seen = sum(map(len, _WORD.findall(reference.lower())))
    return 2 * seen >= sum(map(str.isalnum, reference.lower())) and (seen > 0 or not reference.strip())


def readable(reference: str) -> bool:
    """Whether the Unicode variants can read a reference: it has a word, or is blank."""
    return bool(unicode_words(reference, stemmed=False)) or not reference.strip()


def recall(reference: str, generated: str, split: Split = words) -> float:
    """Longest common subsequence over the reference's length, stemmed; of any two texts."""
    common, length, _ = _common(reference, generated, split, stemmed=True)
    return common / length if common else 0.0


def f1(reference: str, generated: str, split: Split = words, *, stemmed: bool) -> float:
    """Harmonic mean of the longest common subsequence's precision and recall; of any two texts."""
    common, length, other_length = _common(reference, generated, split, stemmed=stemmed)
    if not common:
        return 0.0
    precision, share = common / other_length, common / length
    return 2 * precision * share / (precision + share)  # 2 common / (n + m), rounded as rouge-score rounds it


def recall_1(reference: str, generated: str) -> float:
    """Share of the reference's words that are generated, in any order, repetitions counted; stemmed; of any texts."""
    wanted = words(reference, stemmed=True)
    there, said = Counter(wanted), Counter(words(generated, stemmed=True))
    return sum([min(there[word], said[word]) for word in there.keys() & said.keys()]) / max(len(wanted), 1)


def rouge_l_recall(sample: Sample) -> float | None:
    """Recall with stemming: TOFU's `ROUGE` (arXiv 2401.06121, Sec. 2.2.2). NaN where the reference is not legible."""
    return _number(sample, recall, legible)


def rouge_l_f1(sample: Sample) -> float | None:
    """F-measure without stemming: MUSE's `VerbMem` and `KnowMem` (arXiv 2407.06460, Sec. 3.1). NaN as for recall."""
    return _number(sample, _f1_plain, legible)


def rouge_l_f1_stemmed(sample: Sample) -> float | None:
    """F-measure with stemming: MUSE's numbers as open-unlearning computes them. NaN as for recall."""
    return _number(sample, _f1_stemmed, legible)


def rouge_1_recall(sample: Sample) -> float | None:
    """Share of the reference's words that are generated, with stemming. NaN as for recall."""
    return _number(sample, recall_1, legible)


def rouge_l_recall_unicode(sample: Sample) -> float | None:
    """`rouge_l_recall` of `unicode_words`. NaN where the reference has text but no word."""
    return _number(sample, _recall_unicode, readable)


def rouge_l_f1_unicode(sample: Sample) -> float | None:
    """`rouge_l_f1` of `unicode_words`. NaN where the reference has text but no word."""
    return _number(sample, _f1_unicode, readable)


def _f1_plain(reference: str, generated: str) -> float:
    return f1(reference, generated, stemmed=False)


def _f1_stemmed(reference: str, generated: str) -> float:
    return f1(reference, generated, stemmed=True)


def _recall_unicode(reference: str, generated: str) -> float:
    return recall(reference, generated, unicode_words)


def _f1_unicode(reference: str, generated: str) -> float:
    return f1(reference, generated, unicode_words, stemmed=False)


def _number(sample: Sample, of: Callable[[str, str], float], fits: Callable[[str], bool]) -> float | None:
    if sample.generated is None:
        return None
    return of(sample.reference, sample.generated) if fits(sample.reference) else math.nan


@lru_cache(REMEMBERED)
def _common(reference: str, generated: str, split: Split, *, stemmed: bool) -> tuple[int, int, int]:
    a, b = split(reference, stemmed=stemmed), split(generated, stemmed=stemmed)
    return longest_common_subsequence(a, b), len(a), len(b)


@cache
def _stem() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer  # imported here: it costs half a second

    return lru_cache(1 << 16)(PorterStemmer().stem)


@cache
def _patterns() -> tuple[Any, Any]:
    """Characters that no reader sees (a zero-width space, which divides, is none of them), and words."""
    import regex  # imported here: few texts need it

    alone = r"[\p{L}&&\p{WB=Other}]"
    ignorable = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200b]+", regex.V1)
    word = regex.compile(rf"{alone}\p{{M}}*|[[\p{{L}}\p{{N}}]--{alone}][[\p{{L}}\p{{M}}\p{{N}}]--{alone}]*", regex.V1)
    return ignorable, word
