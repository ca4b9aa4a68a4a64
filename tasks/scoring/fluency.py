"""Is what a model says still language? Repetition and entropy of generated words; needs no other model.

Words here are runs of letters, digits and underscores, and each other mark by itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tasks.task import Sample

REPEATED = 4
"""Words in a row that count as a repetition when they were said before: shorter runs repeat in any good text."""
NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Length of an n-gram to its weight, as in RWKU (arXiv 2406.10890) and before it in ROME (arXiv 2202.05262)."""
REMEMBERED = 4096
"""Texts whose words are kept: the samples of a probe, read by one metric after another."""

_WORD = re.compile(r"\w+|[^\w\s]")


@lru_cache(REMEMBERED)
def words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))


def entropy(counted: Iterable[object]) -> float:
    """Shannon entropy of the relative frequencies of equal things, in bits; 0 of nothing."""
    counts = list(Counter(counted).values())
    total = sum(counts)
    return math.fsum([-n / total * math.log2(n / total) for n in counts])


def normalised_entropy(said: Sequence[str]) -> float:
    """Entropy of the words over log2 of their number: 1 where none is said twice, 0 for one word or none."""
    return entropy(said) / math.log2(len(said)) if len(said) > 1 else 0.0


def repeated_share(said: Sequence[str], length: int) -> float:
    """Share of the runs of `length` words that were said before; 0 where there are fewer words."""
    runs = _ngrams(said, length)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def weighted_ngram_entropy(said: Sequence[str]) -> float:
    """Weighted mean of the entropies of word pairs and word triples, in bits; what has no pair or triple gives 0."""
    terms = [weight * entropy(_ngrams(said, n)) for n, weight in NGRAM_WEIGHTS.items()]
    return math.fsum(terms) / len(terms)


def word_entropy(sample: Sample) -> float | None:
    """`normalised_entropy`: Yuan et al. 2025 (arXiv 2410.08109) on words instead of a tokenizer's tokens."""
    return None if sample.generated is None else normalised_entropy(words(sample.generated))


def ngram_entropy(sample: Sample) -> float | None:
    """`weighted_ngram_entropy`: RWKU's fluency, with the words of this module."""
    return None if sample.generated is None else weighted_ngram_entropy(words(sample.generated))


def repetition(sample: Sample) -> float | None:
    """`repeated_share` of runs of four words."""
    return None if sample.generated is None else repeated_share(words(sample.generated), REPEATED)


def _ngrams(said: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(said[start:] for start in range(n)), strict=False))
