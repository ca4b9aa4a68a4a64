"""From what was computed to rows of the board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from leaderboard.board.schema import ANCHORS, RAW, UNLEARNED, Status
from leaderboard.ranking.headlines import NONE
from leaderboard.ranking.retention_matching import METRIC, PROBE
from suite.engines import Engine
from suite.evaluation.evaluator import Evaluated, Failed
from suite.evaluation.landscape import Reading
from suite.evaluation.retention_matching import RetentionMatch
from suite.evaluation.trial_rows import Row
from suite.storage.provenance import observed
from tasks.scoring import METRICS, SUMMARIES, Estimate, Metric, SummaryMetric, score, summarise
from tasks.task import Headline, Probe, Sample, Split, Subset, Summary, Task

BOTH_SPLITS = "all"
"""The split of rows whose questions are those of both: what published numbers are taken over."""

UNATTACKED = "unattacked"
"""What a summary compares with that looks at the same model without the attack."""

Samples = Mapping[str, Sequence[Sample]]
"""Samples by probe."""


@dataclass(frozen=True)
class Answered:
    """What a subject answered: its samples by probe, after an attack, at a point of its curve.

    Attributes:
        id: of the evaluation that the samples come from; None where there are none.
        probes: as they were asked.
        matching: which weights of the subject were asked.
        failed: why there are no samples.
    """

    subject: str
    attack: str
    point: int
    split: str
    probes: Mapping[str, Probe]
    samples: Samples
    id: str | None
    matching: str = RAW
    failed: str | None = None

    @classmethod
    def of(cls, evaluated: Evaluated | Failed) -> Self:
        e = evaluated.evaluation
        probes = {probe.name: probe for probe in e.probes}
        what = (e.subject, e.attack.name, e.point, str(e.split), probes)
        if isinstance(evaluated, Failed):
            return cls(*what, {}, None, e.matching, evaluated.reason)
        return cls(*what, evaluated.samples, evaluated.artifact.key, e.matching)

    @classmethod
    def nothing(cls, subject: str, split: str, matching: str = RAW) -> Self:
        """For numbers about a subject that it was asked nothing for."""
        return cls(subject, NONE, 0, str(split), {}, {}, None, matching)

    @property
    def who(self) -> tuple[str, str, str]:
        """The model and the questions, whatever the attack."""
        return self.subject, self.matching, self.split

    def with_the_other(self, other: Answered) -> Answered:
        """The questions of both splits together. Nothing is asked again."""
        samples = {name: [*self.samples[name], *other.samples[name]] for name in self.samples}
        return replace(self, split=BOTH_SPLITS, samples=samples, id=f"{self.id}:{other.id}")


def both_splits(answered: Sequence[Answered]) -> list[Answered]:
    """For every subject that was asked both splits without an attack, both together."""
    plain = {a.who: a for a in answered if a.attack == NONE}
    return [
        a.with_the_other(other)
        for (subject, matching, split), a in plain.items()
        if split == Split.DEV and (other := plain.get((subject, matching, str(Split.TEST))))
    ]


@dataclass
class Scorer:
    """Turns answers into rows. It keeps what was answered without an attack, for numbers that compare.

    Attributes:
        anchors: id of the anchors' recipe, which their rows stand under.
        anchor_ids: digests of the anchors' weights.
    """

    task: Task
    engine: Engine
    anchors: str | None = None
    anchor_ids: str | None = None
    _plain: dict[tuple[str, str, str], Samples] = field(default_factory=dict)

    def rows(self, answered: Sequence[Answered], trial: str | None) -> dict[str | None, list[Row]]:
        """One row per number, by the id that they stand under: the trial's, or the anchors'."""
        for a in answered:
            if a.attack == NONE:
                self._plain[a.who] = a.samples
        found: dict[str | None, list[Row]] = {}
        for a in answered:
            under = self.anchors if a.subject in ANCHORS else trial
            found.setdefault(under, []).extend(self._of(a, under))
        return found

    def matching_row(self, trial: str, matching: str, mixture: RetentionMatch) -> Row:
        """How much of the unlearned weights is in the mixture that meets the floor of utility."""
        known = mixture.share is not None
        number = Estimate(mixture.share, None, 1) if known else Estimate.null(mixture.reason or "")
        about = Answered.nothing(UNLEARNED, Split.DEV, matching)
        return self._row(about, trial, PROBE, Subset.RETAIN, METRIC, number)

    def landscape_rows(self, trial: str, readings: Iterable[Reading]) -> list[Row]:
        """Where the unlearned weights lie, on texts of both splits."""
        about = Answered.nothing(UNLEARNED, BOTH_SPLITS)
        return [
            self._row(
                *(about, trial, "landscape", reading.subset, reading.metric),
                Estimate(reading.value, reading.stderr, reading.n, reading.reason),
                reading.direction,
            )
            for reading in readings
        ]

    def _of(self, a: Answered, under: str | None) -> Iterator[Row]:
        roles = {**_roles("knowledge", self.task.knowledge), **_roles("utility", self.task.utility)}
        for name, probe in a.probes.items():
            for metric in probe.metrics:
                role = roles.get((name, metric), (None, None))
                number = _failed(a) or score(metric, a.samples[name])
                yield self._row(a, under, name, probe.subset, metric, number, _direction(METRICS[metric]), role)
        for summary in self.task.summaries:
            for metric in summary.metrics:
                kind = SUMMARIES[metric]
                other = self._compared(a, kind.against) if kind.against else None
                number = _failed(a) or summarise(metric, _tables(summary, a.samples), other and _tables(summary, other))
                yield self._row(a, under, summary.name, summary.subset, metric, number, _direction(kind))

    def _compared(self, a: Answered, against: str) -> Samples | None:
        """What an anchor answered without an attack, or the subject itself."""
        return self._plain.get(a.who if against == UNATTACKED else (against, RAW, a.split))

    def _row(
        self,
        a: Answered,
        under: str | None,
        probe: str,
        subset: str,
        metric: str,
        number: Estimate,
        direction: str | None = None,
        role: tuple[str | None, float | None] = (None, None),
    ) -> Row:
        return {
            "trial": under,
            "subject": a.subject,
            "attack": a.attack,
            "point": a.point,
            "probe": probe,
            "subset": str(subset),
            "split": a.split,
            "matching": a.matching,
            "engine": self.engine.name,
            "metric": metric,
            "value": number.value,
            "stderr": number.stderr,
            "n": number.n,
            "direction": direction,
            "headline": role[0],
            "chance": role[1],
            "status": str(Status.OK if number.known else Status.FAILED if a.failed else Status.NULL),
            "reason": number.reason,
            "task": self.task.name,
            "task_version": self.task.version,
            "data": self.task.data,
            "anchors": self.anchors,
            "anchor_ids": self.anchor_ids,
            "samples": a.id,
            "engine_version": self.engine.version,
            "dtype": self.engine.dtype,
            "batch_invariant": self.engine.batch_invariant,
            "source": self.task.source or None,
            **observed(),
        }


def _direction(metric: Metric | SummaryMetric) -> str:
    return "up" if metric.up else "down"


def _failed(a: Answered) -> Estimate | None:
    return Estimate.null(a.failed) if a.failed else None


def _tables(summary: Summary, samples: Samples) -> list[Sequence[Sample]]:
    return [samples[probe] for probe in summary.probes]


def _roles(role: str, headlines: Sequence[Headline]) -> dict[tuple[str, str], tuple[str, float]]:
    return {(h.probe, h.metric): (role, h.chance) for h in headlines}
