"""ROUGE against rouge-score called directly, against a longest common subsequence of ours, and by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.scoring.rouge import (
    longest_common_subsequence,
    rouge_1_recall,
    rouge_l_f1,
    rouge_l_f1_stemmed,
    rouge_l_recall,
)
from tasks.task import Sample

WORDS = st.lists(st.sampled_from(["ash", "birch", "cedar", "elm", "oak", "the", "of"]), max_size=10).map(" ".join)
TEXT = st.text(st.sampled_from("abcdé .,'-\n1"), max_size=40)


def sample(reference: str, generated: str | None) -> Sample:
    return Sample("a", reference, generated=generated)


def common_words(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook recursion over both last words."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


INFLECTED = st.lists(
    st.sampled_from("flies flying dying died caresses ponies ties cats feed agreed plastered motoring relational "
                    "conditional vietnamization operator hopefulness 1990s 42nd ies was wa sky skies news".split()),
    max_size=12,
).map(" ".join)  # fmt: skip
ANY = TEXT | WORDS | INFLECTED | st.text(max_size=40)


@given(ANY, ANY)
@settings(deadline=None, max_examples=300)
def test_every_variant_is_that_of_rouge_score_to_the_last_bit(reference, generated):
    stemmed = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(reference, generated)
    plain = RougeScorer(["rougeL"], use_stemmer=False).score(reference, generated)
    assert rouge_l_recall(sample(reference, generated)) == stemmed["rougeL"].recall
    assert rouge_l_f1_stemmed(sample(reference, generated)) == stemmed["rougeL"].fmeasure
    assert rouge_1_recall(sample(reference, generated)) == stemmed["rouge1"].recall
    assert rouge_l_f1(sample(reference, generated)) == plain["rougeL"].fmeasure


@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80))
@settings(deadline=None)
def test_the_longest_common_subsequence_is_that_of_the_textbook_table(a, b):
    assert longest_common_subsequence(a, b) == common_words(a, b)


@given(WORDS, WORDS)
@settings(deadline=None)
def test_f1_is_that_of_the_longest_common_subsequence(reference, generated):
    a, b = (re.findall(r"\w+", text) for text in (reference, generated))
    common = common_words(a, b)
    expected = 2 * common / (len(a) + len(b)) if common else 0.0
    assert rouge_l_f1(sample(reference, generated)) == pytest.approx(expected)


def test_worked_case():
    # common subsequence "the cat on the mat": 5 of 6 reference words, 5 of 7 generated words
    case = sample("the cat sat on the mat", "the black cat is on the mat")
    assert rouge_l_recall(case) == pytest.approx(5 / 6)
    assert rouge_l_f1(case) == pytest.approx(2 * 5 / (6 + 7))


def test_recall_stems_and_f1_does_not():
    case = sample("painting houses", "painted house")
    assert rouge_l_recall(case) == 1.0
    assert rouge_l_f1(case) == 0.0


def test_words_of_three_letters_are_not_stemmed():
    assert rouge_l_recall(sample("was", "wa")) == 0.0
    assert rouge_l_recall(sample("goes", "goe")) == 1.0


def test_saying_more_costs_f1_and_not_recall():
    case = sample("Paris", "The capital of France is Paris")
    assert rouge_l_recall(case) == 1.0
    assert rouge_l_f1(case) == pytest.approx(2 / 7)


def test_silence_recalls_nothing_and_no_generation_is_no_number():
    assert rouge_l_recall(sample("Paris", "")) == rouge_l_f1(sample("Paris", "")) == 0.0
    assert rouge_l_recall(sample("Paris", None)) is None
    assert rouge_l_f1(sample("Paris", None)) is None


def test_order_counts_for_rouge_l_and_not_for_rouge_1():
    case = sample("one two three", "three two one")
    assert rouge_1_recall(case) == 1.0
    assert rouge_l_recall(case) == pytest.approx(1 / 3)


def test_a_word_that_is_said_once_is_found_once():
    assert rouge_1_recall(sample("very very good", "very good")) == pytest.approx(2 / 3)
