"""ROUGE-L through Google's rouge-score, the package behind every published number of the field."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tasks.task import Sample

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


@cache
def _scorer(stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # here: it imports nltk, which costs half a second

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


def rouge_l_recall(sample: Sample) -> float | None:
    """Recall with stemming: TOFU's `ROUGE` (arXiv 2401.06121, Sec. 2.2.2)."""
    if sample.generated is None:
        return None
    return _scorer(True).score(sample.reference, sample.generated)["rougeL"].recall


def rouge_l_f1(sample: Sample) -> float | None:
    """F-measure without stemming: MUSE's `VerbMem` and `KnowMem` (arXiv 2407.06460, Sec. 3.1)."""
    if sample.generated is None:
        return None
    return _scorer(False).score(sample.reference, sample.generated)["rougeL"].fmeasure
