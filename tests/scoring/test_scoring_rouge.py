"""ROUGE-L against rouge-score called directly, against a longest common subsequence of ours, and by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.scoring.rouge import rouge_l_f1, rouge_l_recall
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


@given(TEXT | WORDS, TEXT | WORDS)
@settings(deadline=None)
def test_both_variants_are_those_of_rouge_score(reference, generated):
    stemmed = RougeScorer(["rougeL"], use_stemmer=True).score(reference, generated)["rougeL"]
    plain = RougeScorer(["rougeL"], use_stemmer=False).score(reference, generated)["rougeL"]
    assert rouge_l_recall(sample(reference, generated)) == stemmed.recall
    assert rouge_l_f1(sample(reference, generated)) == plain.fmeasure


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


def test_saying_more_costs_f1_and_not_recall():
    case = sample("Paris", "The capital of France is Paris")
    assert rouge_l_recall(case) == 1.0
    assert rouge_l_f1(case) == pytest.approx(2 / 7)


def test_silence_recalls_nothing_and_no_generation_is_no_number():
    assert rouge_l_recall(sample("Paris", "")) == rouge_l_f1(sample("Paris", "")) == 0.0
    assert rouge_l_recall(sample("Paris", None)) is None
    assert rouge_l_f1(sample("Paris", None)) is None
