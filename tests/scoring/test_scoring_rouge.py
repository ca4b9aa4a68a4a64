"""ROUGE against rouge-score called directly, against a longest common subsequence of ours, and by hand."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.scoring import rouge, score
from tasks.scoring.rouge import (
    UNICODE,
    legible,
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
    assert rouge.recall(reference, generated) == stemmed["rougeL"].recall
    assert rouge.f1(reference, generated, stemmed=True) == stemmed["rougeL"].fmeasure
    assert rouge.recall_1(reference, generated) == stemmed["rouge1"].recall
    assert rouge.f1(reference, generated, stemmed=False) == plain["rougeL"].fmeasure
    case = sample(reference, generated)
    numbers = [compute(case) for compute in (rouge_l_recall, rouge_l_f1_stemmed, rouge_1_recall, rouge_l_f1)]
    if legible(reference):
        recall, f1 = stemmed["rougeL"].recall, stemmed["rougeL"].fmeasure
        assert numbers == [recall, f1, stemmed["rouge1"].recall, plain["rougeL"].fmeasure]
    else:
        assert all(map(math.isnan, numbers))


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


ASCII = st.text(st.characters(max_codepoint=127), max_size=60)


@given(ASCII | WORDS | INFLECTED, ASCII | WORDS | INFLECTED)
@settings(deadline=None, max_examples=300)
def test_of_latin_letters_the_unicode_variants_are_those_of_rouge_score(reference, generated):
    stemmed = RougeScorer(["rougeL"], use_stemmer=True).score(reference, generated)["rougeL"]
    plain = RougeScorer(["rougeL"], use_stemmer=False).score(reference, generated)["rougeL"]
    assert rouge.recall(reference, generated, rouge.unicode_words) == stemmed.recall
    assert rouge.f1(reference, generated, rouge.unicode_words, stemmed=False) == plain.fmeasure


@given(st.text(max_size=40), st.text(max_size=40))
@settings(deadline=None, max_examples=300)
def test_what_is_the_same_is_recalled_and_no_script_has_a_share_outside_of_0_to_1(reference, generated):
    assert 0 <= rouge.recall(reference, generated, rouge.unicode_words) <= 1
    for metric in UNICODE.values():
        same = score(metric, [sample(reference, reference)])
        if rouge.unicode_words(reference, stemmed=False):
            assert same.value == pytest.approx(1)
        else:
            assert same.value == (None if reference.strip() else 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Маяк построил Иван Петров в 1904 году.", "маяк построил иван петров в 1904 году"),
        ("燈塔由張偉在1904年建造。", "燈 塔 由 張 偉 在 1904 年 建 造"),
        ("東京タワーは高い", "東 京 タワー は 高 い"),
        ("서울은 한국의 수도", "서울은 한국의 수도"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("مرحبا بالعالم ١٩٠٤", "مرحبا بالعالم ١٩٠٤"),
        ("Ο Φάρος", "ο φάροσ"),
        ("ที่นี่", "ที่ นี่"),
        ("Łódź, l'été: straße_1", "łódź l été strasse 1"),
        ("e\u0301te\u0301 été", "été été"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zero width"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("👍 ❤️ !?", ""),
    ],
)
def test_words_of_every_script(text, words):
    assert rouge.unicode_words(text, stemmed=False) == tuple(words.split())


@pytest.mark.parametrize(
    ("reference", "generated", "recalled"),
    [
        ("Маяк построил Иван Петров.", "Маяк построил Иван Петров.", 1.0),
        ("燈塔由張偉建造。", "燈塔由張偉建造。", 1.0),
        ("燈塔由張偉建造。", "我不知道。", 0.0),
        ("Маяк построил Иван Петров в 1904 году.", "Не знаю. 1904", 1 / 7),
        ("١٩٠٤", "١٩٠٤", 1.0),
    ],
)
def test_of_another_script_the_published_variants_have_no_number_and_say_which_has(reference, generated, recalled):
    for metric, variant in UNICODE.items():
        number = score(metric, [sample(reference, generated)])
        assert number.value is None
        assert "sample a lacks" in number.reason and f"{variant} reads every script" in number.reason
    assert score("rougeL_recall_unicode", [sample(reference, generated)]).value == pytest.approx(recalled)


def test_one_foreign_answer_among_many_is_not_averaged_as_a_zero():
    known = sample("Paris is the capital", "Paris")
    assert score("rougeL_recall", [known, sample("Париж", "Париж")]).value is None
    assert score("rougeL_recall_unicode", [known, sample("Париж", "Париж")]).value == pytest.approx(5 / 8)


def test_a_few_foreign_words_and_letters_leave_the_published_number():
    assert rouge_l_recall(sample('He wrote "Лісова пісня" (Forest Song) and others', "He wrote Forest Song")) < 1
    assert legible("Ngũgĩ wa Thiong'o") and legible("Brasília") and legible("日本 Nihon") and legible(" ")
    assert not legible("日本国 Ni") and not legible("???") and not legible("Łódź")


def test_every_reference_of_the_real_data_is_legible(data):
    """So no published number changes."""
    references = set()
    for file in [*(data / "tofu").glob("*.json"), *(data / "rwku").rglob("*.json")]:
        text = file.read_text()
        rows = json.loads(text) if text.lstrip().startswith("[") else map(json.loads, filter(None, text.split("\n")))
        for row in rows:
            references.update(row[key] for key in ("answer", "paraphrased_answer", "text") if key in row)
    for file in (data / "openunlearning_eval_logs").rglob("TOFU_EVAL.json"):
        for name, metric in json.loads(file.read_text()).items():
            if name.endswith("ROUGE"):
                references.update(row["ground_truth"] for row in metric["value_by_index"].values())
    assert len(references) > 5000
    assert [reference for reference in references if not legible(reference)] == []
