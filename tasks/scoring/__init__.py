"""Computes numbers from samples: pure functions, no model, no torch.

A metric gives one number per sample; its estimate is the mean with the standard error over examples. A summary metric
gives one number from the samples of several probes, or of a model and an anchor. To add one, write the function in a
file of this package and add a line to `METRICS` or to `SUMMARIES`, and a line in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tasks.plugins import OpenRegistry
from tasks.scoring import choice, fluency, identity, last_token, membership, perplexity, probability, rouge
from tasks.scoring.estimate import Estimate, mean
from tasks.scoring.forget_quality import forget_quality, forget_quality_log10
from tasks.scoring.last_token import extracted_at_least_one, without_last
from tasks.scoring.separation import auc_of, auc_reference, privacy_leakage
from tasks.scoring.tables import Missing, PerSample, Table, most_telling, or_none, values
from tasks.scoring.utility import model_utility
from tasks.task import ProbeKind, Sample

__all__ = ["METRICS", "SUMMARIES", "Estimate", "Metric", "SummaryMetric", "score", "summarise"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric with one number per sample.

    Attributes:
        name: metric and variant, as in the column `metric`.
        kind: kind of probe whose samples it reads.
        compute: the number of one sample; None where the sample lacks what it needs.
        up: whether a higher number means that the model knows more.
        source: where the definition comes from.
    """

    name: str
    kind: ProbeKind
    compute: PerSample
    up: bool
    source: str


_LOGPROB, _CHOICE = ProbeKind.LOGPROB, ProbeKind.CHOICE
_TOFU, _MUSE = "TOFU, arXiv 2401.06121", "MUSE, arXiv 2407.06460"
_OPEN_UNLEARNING = "open-unlearning, arXiv 2506.12618"
_WORDS = "words of any script: UAX #29"
_MIN_K, _MIN_K_PLUS_PLUS = "Min-K%, arXiv 2310.16789", "Min-K%++, arXiv 2404.02936"


def _generation(name: str, compute: PerSample, up: bool, source: str) -> Metric:
    """A metric of generated text; with several sampled texts, that of the one which shows the most knowledge."""
    return Metric(name, ProbeKind.GENERATE, most_telling(compute, up), up, source)


def _rouge(name: str, compute: PerSample, source: str) -> Metric:
    """A ROUGE: no number where it cannot read the reference."""
    return _generation(name, or_none(compute), True, source)


def _all_but_last(name: str, compute: PerSample, up: bool) -> Metric:
    """The variant of a metric that reproduces open-unlearning's number, from the same samples."""
    source = f"{_OPEN_UNLEARNING}, without the last token"
    return Metric(f"{name}_open_unlearning", _LOGPROB, without_last(compute), up, source)


METRICS = OpenRegistry[Metric](
    "metric",
    (
        Metric("probability", _LOGPROB, probability.probability, True, _TOFU),
        Metric("exact_memorization", _LOGPROB, probability.memorized, True, "Tirumala et al. 2022, arXiv 2205.10770"),
        Metric("extraction_strength", _LOGPROB, probability.extracted, True, "Carlini et al. 2021, arXiv 2012.07805"),
        Metric("loss", _LOGPROB, membership.loss, False, "Yeom et al. 2018, arXiv 1709.01604"),
        Metric("zlib", _LOGPROB, membership.zlib, False, "Carlini et al. 2021, arXiv 2012.07805"),
        Metric("min_k_20", _LOGPROB, partial(membership.min_k, percent=20), False, _MIN_K),
        Metric("min_k_40", _LOGPROB, partial(membership.min_k, percent=40), False, f"{_MIN_K}; {_MUSE}'s 40 %"),
        Metric(
            "min_k_plus_plus_40", _LOGPROB, partial(membership.min_k_plus_plus, percent=40), False, _MIN_K_PLUS_PLUS
        ),
        Metric("gradient_norm", _LOGPROB, membership.gradient_norm, False, _OPEN_UNLEARNING),
        _all_but_last("exact_memorization", probability.memorized, True),
        _all_but_last("extraction_strength", extracted_at_least_one, True),
        _all_but_last("min_k_40", partial(membership.min_k, percent=40), False),
        _all_but_last("min_k_plus_plus_40", partial(membership.min_k_plus_plus, percent=40), False),
        _all_but_last("gradient_norm", last_token.gradient_norm, False),
        _rouge("rougeL_recall", rouge.rouge_l_recall, _TOFU),
        _rouge("rougeL_f1", rouge.rouge_l_f1, _MUSE),
        _rouge("rougeL_f1_stemmed", rouge.rouge_l_f1_stemmed, f"{_MUSE}; {_OPEN_UNLEARNING}"),
        _rouge("rouge1_recall", rouge.rouge_1_recall, _OPEN_UNLEARNING),
        _rouge("rougeL_recall_unicode", rouge.rouge_l_recall_unicode, f"{_TOFU}, on {_WORDS}"),
        _rouge("rougeL_f1_unicode", rouge.rouge_l_f1_unicode, f"{_MUSE}, on {_WORDS}"),
        _generation("word_entropy", fluency.word_entropy, True, "Yuan et al. 2025, arXiv 2410.08109, on words"),
        _generation("ngram_entropy", fluency.ngram_entropy, True, "RWKU, arXiv 2406.10890"),
        _generation("repetition", fluency.repetition, False, "Welleck et al. 2020, arXiv 1908.04319: seq-rep-4"),
        Metric("accuracy", _CHOICE, choice.accuracy, True, "WMDP, arXiv 2403.03218"),
        Metric("normalised_probability", _CHOICE, choice.normalised_probability, True, _TOFU),
        Metric("truth_ratio_geometric", _CHOICE, choice.geometric, False, f"{_TOFU}; forget quality's variant"),
        Metric("truth_ratio_arithmetic", _CHOICE, choice.arithmetic, False, f"{_TOFU}; model utility's variant"),
        Metric(
            "truth_ratio_geometric_forget", _CHOICE, choice.closeness_to_one(choice.geometric), False,
            f"mean of min(x, 1/x): {_OPEN_UNLEARNING}",
        ),
        Metric(
            "truth_ratio_geometric_retain", _CHOICE, choice.truth(choice.geometric), True,
            f"mean of max(0, 1 - x): {_OPEN_UNLEARNING}",
        ),
        Metric(
            "truth_ratio_arithmetic_retain", _CHOICE, choice.truth(choice.arithmetic), True,
            f"mean of max(0, 1 - x): {_TOFU}",
        ),
    ),
    lambda metric: metric.name,
    "regrade.metrics",
    lambda found: None if isinstance(found, Metric) else "is no tasks.scoring.Metric",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SummaryMetric:
    """A metric over the samples of several probes, or of a model and an anchor.

    Attributes:
        name: metric and variant, as in the column `metric`.
        compute: the number, from the model's samples, a table per probe, and from the anchor's in the same order (none
            where the metric does not compare). Raises `Missing` where something that it reads is missing.
        up: whether a higher number means that the model knows more.
        source: where the definition comes from.
        against: the unattacked samples that it compares with: an anchor's (`retrained`, `target`), or the model's own
            (`unattacked`).
        tables: number of probes that it reads.
    """

    name: str
    compute: Callable[[Sequence[Table], Sequence[Table]], Estimate]
    up: bool
    source: str
    against: str | None = None
    tables: int = 1


def _auc(metric: str) -> SummaryMetric:
    return SummaryMetric(
        f"auc_{metric}", auc_of(metric, METRICS[metric].compute), True, METRICS[metric].source, tables=2
    )


def _leakage(metric: str, source: str) -> SummaryMetric:
    compute = privacy_leakage(metric, METRICS[metric].compute)
    return SummaryMetric(f"privleak_{metric}", compute, False, source, "retrained", 2)


_RECALL = METRICS["rougeL_recall"].compute

SUMMARIES = OpenRegistry[SummaryMetric](
    "summary metric",
    (
        *map(_auc, ("loss", "zlib", "min_k_20", "min_k_40", "min_k_plus_plus_40", "gradient_norm")),
        *map(_auc, ("min_k_40_open_unlearning", "min_k_plus_plus_40_open_unlearning")),
        _auc("gradient_norm_open_unlearning"),
        SummaryMetric("auc_reference", auc_reference, True, "Carlini et al. 2021, arXiv 2012.07805", "retrained", 2),
        _leakage("min_k_40", _MUSE),
        _leakage("min_k_40_open_unlearning", _OPEN_UNLEARNING),
        SummaryMetric("forget_quality", forget_quality, False, _TOFU, "retrained"),
        SummaryMetric("forget_quality_log10", forget_quality_log10, False, _TOFU, "retrained"),
        SummaryMetric(
            "model_utility_geometric", model_utility(_RECALL, METRICS["truth_ratio_geometric_retain"].compute), True,
            _OPEN_UNLEARNING, tables=7,
        ),
        SummaryMetric(
            "model_utility_arithmetic", model_utility(_RECALL, METRICS["truth_ratio_arithmetic_retain"].compute), True,
            _TOFU, tables=7,
        ),
        SummaryMetric("perplexity", perplexity.perplexity, False, "Jelinek et al. 1977"),
        SummaryMetric("accuracy_distance", choice.accuracy_distance, True, "WMDP, arXiv 2403.03218: chance is the aim"),
        SummaryMetric("identical_outputs", identity.identical_outputs, True, "a check of ours", "target"),
        SummaryMetric(
            "unchanged_answers", identity.unchanged_answers, False, "rigidity, arXiv 2603.00823", "unattacked"
        ),
    ),
    lambda summary: summary.name,
    "regrade.summary_metrics",
    lambda found: None if isinstance(found, SummaryMetric) else "is no tasks.scoring.SummaryMetric",
)  # fmt: skip


def summarise(metric: str, tables: Sequence[Table], anchor: Sequence[Table] | None = None) -> Estimate:
    """Computes a summary metric; null with the reason where that is not possible.

    Raises:
        KeyError: no such metric.
    """
    summary = SUMMARIES[metric]
    if len(tables) != summary.tables:
        return Estimate.null(f"{metric} reads {summary.tables} probes, got {len(tables)}")
    if summary.against:
        if not anchor:
            return Estimate.null(f"no {summary.against} model was measured")
        if len(anchor) != summary.tables:
            reads = f"{metric} reads {summary.tables} probes of the {summary.against} model"
            return Estimate.null(f"{reads}, got {len(anchor)}")
    try:
        return summary.compute(tables, anchor or ())
    except Missing as missing:
        return Estimate.null(str(missing))


def score(metric: str, samples: Iterable[Sample]) -> Estimate:
    """The metric's mean over the samples, with its standard error.

    Null, with the reason, where there are no samples, a sample lacks what the metric reads, or a value is not finite.

    Raises:
        KeyError: no such metric.
    """
    try:
        return mean(values(metric, METRICS[metric].compute, samples))
    except Missing as missing:
        return Estimate.null(str(missing))
