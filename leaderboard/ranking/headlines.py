"""Computes one trial's headlines from measurement rows: F, R, U, the score, and excess recovery per attack.

The formulas are those of `tasks.scoring.headline`; this module decides which rows are their terms, and the reason that
is given when one is missing. A missing term makes its headline null; it is never left out of a maximum, because it
could be the largest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeVar

from leaderboard.board.schema import CHANCE, Status
from tasks.scoring.estimate import Estimate
from tasks.scoring.headline import (
    anchor_gap,
    area,
    harmonic_mean,
    knowledge,
    largest,
    share_kept,
    share_lost,
    share_of_gap,
    smallest,
)

LARGEST = 1e100
"""Larger numbers are no measurement, and what is computed from them has no end among floats."""

NONE = "none"
"""The attack that does nothing."""


class HeadlineMetric(NamedTuple):
    """A metric of a probe that is a headline of `knowledge` or of `utility`."""

    headline: str
    probe: str
    subset: str
    metric: str


MEASURED = ("attack", "point", "value", "stderr", "n", "reason", "chance", "samples", "status")
"""Columns of the table `measurements` that a `Measured` is made of, besides those of its metric."""


class Measured(NamedTuple):
    """A row of the table `measurements`, as far as a headline needs it.

    Attributes:
        samples: id of the evaluation whose samples were scored.
        failed: the error that the attack ended in.
    """

    attack: str
    point: int
    metric: HeadlineMetric
    estimate: Estimate
    chance: float
    samples: str | None
    failed: str | None

    @classmethod
    def of(
        cls,
        metric: HeadlineMetric,
        attack: str,
        point: int,
        value: float | None,
        error: float | None,
        n: int | None,
        reason: str | None,
        chance: float | None,
        samples: str | None,
        status: str,
    ) -> Measured:
        """The arguments after the first are the values of the columns `MEASURED`."""
        number = estimate(value, error, n or 0, reason, metric)
        failed = (reason or "no reason was given") if status == Status.FAILED else None
        return cls(attack, point, metric, number, chance or 0.0, samples, failed)


@dataclass(frozen=True)
class HeadlineMeasurements:
    """The headline measurements of one model, by attack, point on the attack's curve, and metric.

    Attributes:
        failed: attacks that ended in an error, with its message.
        samples: ids of the evaluations whose samples were scored.
    """

    model: str
    estimates: Mapping[tuple[str, int, HeadlineMetric], Estimate]
    chances: Mapping[HeadlineMetric, float]
    failed: Mapping[str, str]
    samples: Mapping[tuple[str, int, HeadlineMetric], str] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, model: str, rows: Iterable[Mapping[str, Any]]) -> Self:
        """The measurements in rows of the table `measurements`; `model` is the model's name in reasons."""
        return cls.of(model, map(_measured, rows))

    @classmethod
    def of(cls, model: str, rows: Iterable[Measured]) -> Self:
        estimates: dict[tuple[str, int, HeadlineMetric], Estimate] = {}
        chances: dict[HeadlineMetric, float] = {}
        errors: dict[tuple[str, int], str] = {}
        samples: dict[tuple[str, int, HeadlineMetric], str] = {}
        for attack, point, metric, number, chance, evaluation, error in rows:
            cell = attack, point, metric
            estimates[cell] = number
            if evaluation:
                samples[cell] = evaluation
            chances[metric] = chance
            if error:
                errors[attack, point] = error
        failed: dict[str, str] = {}
        for attack, point in sorted(errors):
            failed.setdefault(attack, errors[attack, point])
        return cls(model, estimates, chances, failed, samples)

    def metrics(self, headline: str) -> frozenset[HeadlineMetric]:
        return self._metrics.get(headline, frozenset())

    def points(self, attack: str) -> frozenset[int]:
        return self._points.get(attack, frozenset())

    @cached_property
    def attacks(self) -> frozenset[str]:
        """The attacks that the model was measured under, as in rows."""
        return frozenset(self._points)

    @cached_property
    def _metrics(self) -> Mapping[str, frozenset[HeadlineMetric]]:
        return _grouped((metric.headline, metric) for metric in self.chances)

    @cached_property
    def _points(self) -> Mapping[str, frozenset[int]]:
        return _grouped((attack, point) for attack, point, _ in self.estimates)

    def under(self, attack: str, point: int, metric: HeadlineMetric) -> Estimate:
        """A metric after an attack; null with the reason where it was not measured."""
        if found := self.estimates.get((attack, point, metric)):
            return found
        missing = f"{metric.probe} {metric.metric} was not measured on the {self.model} model"
        return Estimate.null(missing + ("" if attack == NONE else f" under {attack} at {point}"))

    def unattacked(self, metric: HeadlineMetric) -> Estimate:
        return self.under(NONE, 0, metric)


class AtChance(HeadlineMeasurements):
    """Replaces the retrained model's measurements where none can exist: chance, under any attack.

    What an attack teaches then counts as recovered knowledge.
    """

    @classmethod
    def on_metrics_of(cls, target: HeadlineMeasurements) -> Self:
        """Chance on the metrics that the target was measured on."""
        return cls(CHANCE, target.estimates, target.chances, {})

    def under(self, attack: str, point: int, metric: HeadlineMetric) -> Estimate:
        measured = self.estimates.get((NONE, 0, metric))
        return Estimate(self.chances.get(metric, 0.0), 0.0, measured.n if measured else 0)


def trial_headlines(
    unlearned: HeadlineMeasurements,
    target: HeadlineMeasurements,
    retrained: HeadlineMeasurements,
    anchor_ids: str | None,
    attacks: Sequence[str],
) -> Headlines:
    """The headlines of an unlearned model relative to its anchors: the only way from rows to F, R and U.

    The zero is the retrained model, or chance where the ids of the anchors say that there is no such model.
    """
    return headlines(unlearned, target, AtChance.on_metrics_of(target) if at_chance(anchor_ids) else retrained, attacks)


def at_chance(anchor_ids: str | None) -> bool:
    """Whether the ids of the anchors say that chance stands for the retrained model."""
    return (anchor_ids or "").endswith(f":{CHANCE}")


@dataclass(frozen=True, slots=True)
class Headlines:
    """One trial's numbers, each with its standard error over examples, or null with the reason.

    Attributes:
        forgetting: F, 1 - clip(knowledge).
        robustness: R, 1 - clip(worst excess recovery over the attack set, `none` included), so R <= F.
        robustness_harmonic: harmonic mean over the same set of 1 - clip(excess recovery), so never below R.
        utility: U, the smallest share of the target's utility that was kept.
        score: harmonic mean of F, R and U.
        recovery: per attack the largest excess recovery over the task's knowledge probes and the attack's points, as
            a share of the distance between the anchors: 0 means nothing beyond what the attack teaches, 1 everything.
        curves: per attack with more than one point the excess recovery at each, the largest over the knowledge probes.
            Point 0 is before the attack.
        areas: per such attack the area under its curve, divided by its length.
        failed: attacks that ended in an error, with its message.
    """

    forgetting: Estimate
    robustness: Estimate
    robustness_harmonic: Estimate
    utility: Estimate
    score: Estimate
    recovery: Mapping[str, Estimate]
    curves: Mapping[str, Mapping[int, Estimate]]
    areas: Mapping[str, Estimate]
    failed: Mapping[str, str]

    @classmethod
    def null(cls, missing: Estimate, attacks: Iterable[str]) -> Self:
        """Headlines that are all null for the same reason."""
        return cls(missing, missing, missing, missing, missing, dict.fromkeys(attacks, missing), {}, {}, {})


def headlines(
    unlearned: HeadlineMeasurements,
    target: HeadlineMeasurements,
    retrained: HeadlineMeasurements,
    attacks: Sequence[str],
) -> Headlines:
    """A trial's headlines from its own measurements, those of its anchors, and the attacks that R covers."""
    attacks = list(dict.fromkeys([NONE, *attacks]))
    failed = {attack: why for attack in attacks if (why := _failure(attack, unlearned, retrained))}
    metrics = sorted(unlearned.metrics("knowledge") | target.metrics("knowledge"))
    gaps = {q: anchor_gap(target.unattacked(q), retrained.unattacked(q)) for q in metrics}
    points = {attack: _points(attack, unlearned, target, retrained, gaps) for attack in attacks}
    recovery = {
        attack: Estimate.null(f"{attack} {failed[attack]}") if attack in failed else largest(points[attack].values())
        for attack in attacks
    }
    curves = {
        attack: {0: recovery[NONE], **points[attack]}
        for attack in attacks
        if len(points[attack]) > 1 and attack not in failed
    }
    forgetting = share_lost(recovery[NONE])
    unknown = _unknown(recovery, [attack for attack in attacks if not unlearned.points(attack)])
    robustness = unknown or share_lost(largest(recovery.values()))
    harmonic = unknown or harmonic_mean(*map(share_lost, recovery.values()), dependent=True)
    utility = utility_share(unlearned, target)
    return Headlines(
        forgetting,
        robustness,
        harmonic,
        utility,
        harmonic_mean(forgetting, robustness, utility),
        recovery,
        curves,
        {attack: area(curve) for attack, curve in curves.items()},
        failed,
    )


def utility_share(model: HeadlineMeasurements, target: HeadlineMeasurements) -> Estimate:
    """Utility of a model: the smallest share of the target's, over the task's utility probes."""
    metrics = sorted(model.metrics("utility") | target.metrics("utility"))
    if not metrics:
        return Estimate.null("utility was not measured")
    return smallest(
        share_kept(model.unattacked(metric), target.unattacked(metric), target.chances.get(metric, 0.0))
        for metric in metrics
    )


def _points(
    attack: str,
    unlearned: HeadlineMeasurements,
    target: HeadlineMeasurements,
    retrained: HeadlineMeasurements,
    gaps: Mapping[HeadlineMetric, Estimate],
) -> dict[int, Estimate]:
    """Excess recovery at each point of an attack, the largest over the knowledge metrics; one null if undefined.

    Args:
        gaps: the distance between the anchors on each knowledge metric.
    """
    if not gaps:
        return {0: Estimate.null("knowledge was not measured")}
    if not retrained.estimates:
        return {0: Estimate.null("no retrained model was measured, so there is no zero to recover from")}
    if not unlearned.points(attack):
        return {0: Estimate.null(f"not measured under {attack}")}
    if attack == NONE:
        return {
            0: largest(knowledge(unlearned.unattacked(q), target.unattacked(q), retrained.unattacked(q)) for q in gaps)
        }
    return {
        point: largest(
            share_of_gap(unlearned.under(attack, point, q), retrained.under(attack, point, q), gap)
            for q, gap in gaps.items()
        )
        for point in sorted(unlearned.points(attack) | retrained.points(attack))
    }


def _failure(attack: str, unlearned: HeadlineMeasurements, retrained: HeadlineMeasurements) -> str | None:
    """How an attack failed on the unlearned or the retrained model: `failed: OutOfMemoryError: ...`; else None."""
    for model, where in ((unlearned, ""), (retrained, " on the retrained model")):
        if attack in model.failed:
            return f"failed{where}: {model.failed[attack]}"
    return None


def _unknown(recovery: Mapping[str, Estimate], not_run: Sequence[str]) -> Estimate | None:
    """Why robustness is null, if it is: the attacks that were not measured, then the reasons of the others."""
    reasons = [f"not measured under {', '.join(not_run)}"] if not_run else []
    reasons += [found.reason for attack, found in recovery.items() if found.reason and attack not in not_run]
    return Estimate.null("; ".join(dict.fromkeys(reasons))) if reasons else None


def _measured(row: Mapping[str, Any]) -> Measured:
    return Measured.of(
        HeadlineMetric(row["headline"], row["probe"], row["subset"], row["metric"]),
        row["attack"],
        row["point"],
        row.get("value"),
        row.get("stderr"),
        row.get("n"),
        row.get("reason"),
        row.get("chance"),
        row.get("samples"),
        row["status"],
    )


def estimate(value: float | None, error: float | None, n: int, reason: str | None, metric: HeadlineMetric) -> Estimate:
    """A number of the table `measurements`; null where it is not finite, or no model can have it."""
    if value is not None and error is not None and -LARGEST <= value <= LARGEST and -LARGEST <= error <= LARGEST:
        return Estimate(value, error, n)  # nearly every one, of which a board has many
    if value is None or not math.isfinite(value):
        return Estimate.null(reason or f"{metric.probe} {metric.metric} has no value", n)
    if max(abs(value), error or 0.0) > LARGEST:
        return Estimate.null(f"{metric.probe} {metric.metric} is {value:g} +- {error or 0:g}, which cannot be", n)
    return Estimate(value, error if error is not None and math.isfinite(error) else None, n)


_Name = TypeVar("_Name", bound=Hashable)
_Value = TypeVar("_Value", bound=Hashable)


def _grouped(pairs: Iterable[tuple[_Name, _Value]]) -> dict[_Name, frozenset[_Value]]:
    found: defaultdict[_Name, set[_Value]] = defaultdict(set)
    for name, value in pairs:
        found[name].add(value)
    return {name: frozenset(values) for name, values in found.items()}
