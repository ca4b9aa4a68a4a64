"""Published numbers that are means over examples, with a number per example in the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from statistics import fmean

from leaderboard.peers import published
from leaderboard.peers.answers import CHOICES, GENERATED, LIKELY, PERTURBED, Samples, perturbed
from leaderboard.peers.line import PUBLISHED, TOLERANCE, Line, Variant
from leaderboard.peers.logs import Log
from tasks.plain_text import cut
from tasks.scoring import METRICS, Estimate, score
from tasks.scoring.estimate import mean
from tasks.scoring.probability import answer_probability
from tasks.scoring.rouge import legible
from tasks.scoring.tables import PerSample, values
from tasks.task import Sample

EPSILON = "theirs adds 1e-10 to the denominator"
SHIFTED = "their rows are shifted: without the null ones they stand under the first indices"
LAST_TOKEN = "scores leave out the last labelled token"
NOT_ZERO = "scores are 1/n instead of 0 where nothing is extracted"

A_TO_Z = "theirs reads a to z and 0 to 9 alone, less than half of some answers"

ROUGE = {"rouge1_recall": "rouge1_recall", "rougeL_recall": "rougeL_recall", "rougeL_f1": "rougeL_f1_stemmed"}
"""Our metric by the name of a published ROUGE."""

AGGREGATED = {"TOFU": "rougeL_recall", "MUSE": "rougeL_f1_stemmed"}
"""The ROUGE variant of a benchmark's aggregates."""

Numbers = Mapping[str, float | None]
"""Published numbers by example."""


@dataclass(frozen=True)
class Model:
    """A model's log and the samples that it was converted to."""

    log: Log
    samples: Samples
    _rouges: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict, compare=False, repr=False)

    def probe(self, name: str) -> Sequence[Sample]:
        """A probe's samples, none where the log has none."""
        return self.samples.get(name, ())

    def rouges(self, probe: str) -> Mapping[str, Sequence[float]]:
        """rouge-score's numbers of a probe's texts, in their order, by our metric. Computed once."""
        if probe not in self._rouges:
            texts = [(sample.reference, sample.generated) for sample in self.probe(probe)]
            numbers = [published.rouges(reference, said) for reference, said in texts if said is not None]
            columns = zip(*numbers, strict=True) if numbers else ((),) * len(published.ROUGE)
            self._rouges[probe] = dict(zip(published.ROUGE, columns, strict=True))
        return self._rouges[probe]

    def scored(self, probe: str, key: str) -> list[Sample]:
        """The samples of a probe that have the log's own score."""
        return [sample for sample in self.probe(probe) if own_score(key)(sample) is not None]


def own_score(key: str) -> PerSample:
    """The log's own score of a sample."""
    return lambda sample: dict(sample.scalars).get(key)


def scored(metric: str, samples: Sequence[Sample]) -> Estimate:
    """Our number of the samples; where a value is not finite, the reason names the first such example."""
    found, compute = score(metric, samples), METRICS[metric].compute
    if found.known or not samples:
        return found
    odd = (sample.item for sample in samples if (value := compute(sample)) is not None and not math.isfinite(value))
    index = next(odd, None)
    return found if index is None else replace(found, reason=f"{found.reason} (that of index {cut(index)})")


def probability(model: Model, key: str) -> Line:
    """Mean length-normalised probability of answers."""
    if key in PERTURBED:
        return _wrong(model, key)
    samples = model.probe(probe := LIKELY[key])
    items = differing(samples, model.log.rows(key, "prob", float), METRICS["probability"].compute)
    number = model.log.published[key]
    return Line(key, probe, "probability", number, scored("probability", samples), unlike=len(items))


def _wrong(model: Model, key: str) -> Line:
    """Mean probability of wrong answers. It is taken without a sample of each, unless a reason is to name one."""
    losses, theirs = (model.log.rows(key, field, tuple) for field in ("avg_loss", "prob"))
    numbers, unlike = [], 0
    for index, row in losses.items():
        ours = [answer_probability((-loss,)) for loss in row or ()]
        pairs = zip_longest(ours, (theirs.get(index) or ())[: len(ours)])
        unlike += len(ours) - sum([same(*pair) for pair in pairs])
        numbers += ours
    probe, finite = PERTURBED[key], all(map(math.isfinite, numbers))
    found = mean(numbers) if finite else scored("probability", perturbed(model.log)[probe])
    return Line(key, probe, "probability", model.log.published[key], found, unlike=unlike)


def rouge(model: Model, key: str) -> Line:
    """Mean ROUGE of generated texts; all three published variants are compared for each text."""
    probe, metric = GENERATED[key], AGGREGATED[model.log.benchmark]
    samples, numbers, items = model.probe(probe), model.rouges(probe), set[str]()
    for theirs, name in ROUGE.items():
        rows = model.log.rows(key, theirs, float)
        found = dict(zip((sample.item for sample in samples), numbers[name], strict=True))
        items.update(item for item, number in found.items() if not same(number, rows.get(item)))
    variants: tuple[Variant, ...] = ()
    if all(legible(sample.reference) for sample in samples):
        ours = mean(numbers[metric])
    else:  # ours has no number; theirs is of whatever a to z is in them
        ours, variants = scored(metric, samples), (Variant(fmean(numbers[metric]), A_TO_Z),)
    return Line(key, probe, metric, model.log.published[key], ours, variants, len(items))


def truth_ratio(model: Model, key: str) -> Line:
    """Mean of the truth ratio x, as min(x, 1/x) on the forget set and max(0, 1 - x) on retained knowledge."""
    forget = key.startswith("forget")
    metric = "truth_ratio_geometric_forget" if forget else "truth_ratio_geometric_retain"
    variant = published.truth_ratio_forget if forget else published.truth_ratio_retain
    theirs = model.log.rows(key, "score", float)
    return _choice(model, key, metric, variant, theirs, METRICS["truth_ratio_geometric"].compute, published.truth_ratio)


def normalised_probability(model: Model, key: str) -> Line:
    """Mean probability of the right answer over that of all answers."""
    metric, variant = "normalised_probability", published.normalised_probability
    return _choice(model, key, metric, variant, model.log.rows(key, "prob", float), METRICS[metric].compute, variant)


def memorization(model: Model, key: str) -> Line:
    """Mean of scores that the log has without the tokens that they were computed from."""
    ours = mean(values(key, own_score(key), model.scored("forget_memorization", key)))
    remark = f"{NOT_ZERO}; {LAST_TOKEN}" if key == "extraction_strength" else LAST_TOKEN
    return Line(key, "forget_memorization", key + PUBLISHED, model.log.published[key], ours, remark=remark)


def differing(
    samples: Sequence[Sample], theirs: Numbers, *accepted: PerSample, tolerance: float = TOLERANCE
) -> list[str]:
    """Items whose published number equals none of the metrics to the tolerance (absolute, or relative above 1)."""

    found: list[str] = []
    for sample in samples:
        number = theirs.get(sample.item)
        for compute in accepted:
            if same(compute(sample), number, tolerance):
                break
        else:
            found.append(sample.item)
    return found


def same(ours: float | None, theirs: float | None, tolerance: float = TOLERANCE) -> bool:
    """Whether two numbers of an example are one, to the tolerance (absolute, or relative above 1)."""
    if ours is None or theirs is None:
        return False
    return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)


def _choice(model: Model, key: str, metric: str, variant: PerSample, theirs: Numbers, *accepted: PerSample) -> Line:
    probe, right = CHOICES[key.partition("_")[0]]
    samples = model.probe(probe)
    items, remark = differing(samples, theirs, *accepted), ""
    if items and len(samples) == len(theirs) < len(model.log.rows(right, "avg_loss", float)):
        by_place = dict(zip([sample.item for sample in samples], theirs.values(), strict=True))
        remark = "" if differing(samples, by_place, *accepted) else SHIFTED
    return Line(
        key,
        probe,
        metric,
        model.log.published[key],
        scored(metric, samples),
        (Variant(fmean(values(metric, variant, samples)), EPSILON),) if samples else (),
        len(items),
        remark,
    )
