"""Fluency of generated words against nltk and scipy, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk import FreqDist, ngrams
from nltk.tokenize import NLTKWordTokenizer
from scipy.stats import entropy as scipy_entropy

from tasks.scoring import METRICS
from tasks.scoring.fluency import words
from tasks.task import Sample

WORDS = st.lists(st.sampled_from("the a cat dog sat on mat , ; and".split()), max_size=40)
GENERATED = ("word_entropy", "ngram_entropy", "repetition")


def value_of(metric: str, generated: str) -> float | None:
    return METRICS[metric].compute(Sample("a", "x", generated=generated))


def bits(things: list) -> float:
    return float(scipy_entropy(list(FreqDist(things).values()), base=2)) if things else 0.0


@given(WORDS)
@settings(deadline=None)
def test_ngram_entropy_is_the_published_formula_over_nltk_ngrams(words):
    tokens = NLTKWordTokenizer().tokenize(" ".join(words))
    expected = np.mean([bits(list(ngrams(tokens, 2))) * 2 / 3, bits(list(ngrams(tokens, 3))) * 4 / 3])
    assert value_of("ngram_entropy", " ".join(words)) == pytest.approx(expected, abs=1e-9)


@given(WORDS)
@settings(deadline=None)
def test_word_entropy_is_scipys_over_its_largest_value(words):
    expected = bits(words) / math.log2(len(words)) if len(words) > 1 else 0.0
    assert value_of("word_entropy", " ".join(words)) == pytest.approx(expected, abs=1e-9)


@given(WORDS)
@settings(deadline=None)
def test_repetition_is_what_a_listener_counts_who_remembers_all(words):
    heard, again = set(), 0
    for start in range(len(words) - 3):
        run = tuple(words[start : start + 4])
        again += run in heard
        heard.add(run)
    assert value_of("repetition", " ".join(words)) == pytest.approx(again / max(1, len(words) - 3))


def test_worked_cases():
    assert value_of("word_entropy", "a b c d") == 1.0
    assert value_of("word_entropy", "a a b b") == pytest.approx(0.5)  # 1 bit of 2
    assert value_of("repetition", "a b c d a b c d") == pytest.approx(1 / 5)  # five runs, the last is the first
    assert value_of("ngram_entropy", "a b c d e") == pytest.approx((2 * 2 / 3 + math.log2(3) * 4 / 3) / 2)


def test_a_broken_record_has_neither_entropy_nor_anything_new():
    words = "no " * 50
    assert value_of("word_entropy", words) == value_of("ngram_entropy", words) == 0.0
    assert value_of("repetition", words) == pytest.approx(46 / 47)


@pytest.mark.parametrize("metric", GENERATED)
@pytest.mark.parametrize("words", ["", "   \n", "Paris", "!"])
def test_nothing_or_a_single_word_has_no_entropy_and_repeats_nothing(metric, words):
    assert value_of(metric, words) == 0.0


@pytest.mark.parametrize("metric", GENERATED)
@given(words=st.text(max_size=60))
@settings(deadline=None)
def test_any_text_has_a_number(metric, words):
    value = value_of(metric, words)
    assert math.isfinite(value)
    assert value >= 0
    assert metric == "ngram_entropy" or value <= 1 + 1e-12


def test_words_are_runs_of_letters_and_single_marks_in_any_script():
    assert words("Don't, naïve Ünïcode 東京!") == ("Don", "'", "t", ",", "naïve", "Ünïcode", "東京", "!")
