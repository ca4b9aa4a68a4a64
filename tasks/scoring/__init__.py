"""From samples to numbers: pure functions, no model, no torch.

A metric gives one number per sample; the measurement is their mean with its standard error over examples. To add one,
write the function in a file of this package and add its line to `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.scoring import choice, probability, rouge
from tasks.scoring.estimate import Estimate, mean
from tasks.task import ProbeKind, Sample

__all__ = ["METRICS", "SUMMARIES", "Estimate", "Metric", "SummaryMetric", "score", "summarise"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number per sample, and how to read it.

    Attributes:
        name: metric and variant, as it stands in every row.
        kind: kind of probe whose samples it reads.
        of: the number of one sample; None where the sample lacks what it needs.
        up: whether a higher number means that the model knows more.
        source: where the definition comes from.
    """

    name: str
    kind: ProbeKind
    of: Callable[[Sample], float | None]
    up: bool
    source: str


def _truth_ratio_forget(of: Callable[[Sample], float | None]) -> Callable[[Sample], float | None]:
    def metric(sample: Sample) -> float | None:
        ratio = of(sample)
        return None if ratio is None else min(ratio, 1 / ratio) if ratio else 0.0

    return metric


def _truth_ratio_retain(of: Callable[[Sample], float | None]) -> Callable[[Sample], float | None]:
    def metric(sample: Sample) -> float | None:
        ratio = of(sample)
        return None if ratio is None else max(0.0, 1 - ratio)

    return metric


_LOGPROB, _CHOICE, _GENERATE = ProbeKind.LOGPROB, ProbeKind.CHOICE, ProbeKind.GENERATE
_TOFU = "TOFU, arXiv 2401.06121"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("probability", _LOGPROB, probability.probability, True, _TOFU),
        Metric("exact_memorization", _LOGPROB, probability.memorized, True, "Tirumala et al. 2022, arXiv 2205.10770"),
        Metric("extraction_strength", _LOGPROB, probability.extracted, True, "Carlini et al. 2021, arXiv 2012.07805"),
        Metric("rougeL_recall", _GENERATE, rouge.rouge_l_recall, True, _TOFU),
        Metric("rougeL_f1", _GENERATE, rouge.rouge_l_f1, True, "MUSE, arXiv 2407.06460"),
        Metric("accuracy", _CHOICE, choice.accuracy, True, "WMDP, arXiv 2403.03218"),
        Metric("normalised_probability", _CHOICE, choice.normalised_probability, True, _TOFU),
        Metric("truth_ratio_geometric", _CHOICE, choice.geometric, False, f"{_TOFU}; forget quality's variant"),
        Metric("truth_ratio_arithmetic", _CHOICE, choice.arithmetic, False, f"{_TOFU}; model utility's variant"),
        Metric(
            "truth_ratio_geometric_forget", _CHOICE, _truth_ratio_forget(choice.geometric), False,
            "mean of min(x, 1/x): open-unlearning, arXiv 2506.12618",
        ),
        Metric(
            "truth_ratio_geometric_retain", _CHOICE, _truth_ratio_retain(choice.geometric), True,
            "mean of max(0, 1 - x): open-unlearning, arXiv 2506.12618",
        ),
        Metric(
            "truth_ratio_arithmetic_retain", _CHOICE, _truth_ratio_retain(choice.arithmetic), True,
            f"mean of max(0, 1 - x): {_TOFU}",
        ),
    )
}  # fmt: skip


Table = Sequence[Sample]
"""The samples of one probe."""


@dataclass(frozen=True, slots=True)
class SummaryMetric:
    """One number from the samples of several probes, or of a model and of an anchor.

    Attributes:
        name: metric and variant, as it stands in every row.
        of: the number, from the model's samples, a table per probe, and from the anchor's in the same order (none where
            the metric does not compare).
        up: whether a higher number means that the model knows more.
        source: where the definition comes from.
        against: the anchor whose samples, without any attack, it compares with: `retrained` or `target`.
    """

    name: str
    of: Callable[[Sequence[Table], Sequence[Table]], Estimate]
    up: bool
    source: str
    against: str | None = None


SUMMARIES: dict[str, SummaryMetric] = {}


def summarise(metric: str, tables: Sequence[Table], anchor: Sequence[Table] | None = None) -> Estimate:
    """A summary's number, null with the reason where it cannot be computed.

    Raises:
        KeyError: no such metric.
    """
    summary = SUMMARIES[metric]
    if summary.against and not anchor:
        return Estimate.null(f"no {summary.against} model was measured")
    return summary.of(tables, anchor or ())


def score(metric: str, samples: Iterable[Sample]) -> Estimate:
    """The metric's mean over the samples, with its standard error.

    Null, with the reason, where there are no samples, a sample lacks what the metric reads, or a value is not finite.

    Raises:
        KeyError: no such metric.
    """
    of = METRICS[metric].of
    values: list[float] = []
    for sample in samples:
        value = of(sample)
        if value is None:
            return Estimate.null(f"sample {sample.item} lacks what {metric} reads")
        values.append(value)
    return mean(values)
