"""Fluency of generated text: repetition and entropy of its words; needs no other model.

Words here are runs of letters, digits and underscores, and each punctuation mark by itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tasks.task import Sample

REPEATED = 4
"""Length of the n-grams whose repetition counts: shorter ones repeat in any good text."""
NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight by length of the n-grams, as in RWKU (arXiv 2406.10890) and before it in ROME (arXiv 2202.05262)."""
REMEMBERED = 4096
"""Size of the cache of split texts: several metrics read the same samples one after another."""

_WORD = re.compile(r"\w+|[^\w\s]")


@lru_cache(REMEMBERED)
def words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text))


def entropy(counted: Iterable[object]) -> float:
    """Shannon entropy of the relative frequencies of equal elements, in bits; 0 for no elements."""
    counts = list(Counter(counted).values())
    total = sum(counts)
    return math.fsum([-n / total * math.log2(n / total) for n in counts])


def normalised_entropy(tokens: Sequence[str]) -> float:
    """Entropy of the words over log2 of their number: 1 where none occurs twice, 0 for one word or none."""
    return entropy(tokens) / math.log2(len(tokens)) if len(tokens) > 1 else 0.0


def repeated_share(tokens: Sequence[str], length: int) -> float:
    """Share of the n-grams of `length` words that occurred before; 0 where there are fewer words."""
    ngrams = _ngrams(tokens, length)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def weighted_ngram_entropy(tokens: Sequence[str]) -> float:
    """Weighted mean of the entropies of word pairs and word triples, in bits; 0 where there are none."""
    terms = [weight * entropy(_ngrams(tokens, n)) for n, weight in NGRAM_WEIGHTS.items()]
    return math.fsum(terms) / len(terms)


def word_entropy(sample: Sample) -> float | None:
    """`normalised_entropy`: Yuan et al. 2025 (arXiv 2410.08109) on words instead of a tokenizer's tokens."""
    return None if sample.generated is None else normalised_entropy(words(sample.generated))


def ngram_entropy(sample: Sample) -> float | None:
    """`weighted_ngram_entropy`: RWKU's fluency, with the words of this module."""
    return None if sample.generated is None else weighted_ngram_entropy(words(sample.generated))


def repetition(sample: Sample) -> float | None:
    """`repeated_share` of 4-grams."""
    return None if sample.generated is None else repeated_share(words(sample.generated), REPEATED)


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
