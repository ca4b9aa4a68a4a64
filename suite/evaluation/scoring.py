"""From samples to rows of the board."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from leaderboard.board.items import Key, item_row
from leaderboard.board.packages import as_column
from leaderboard.board.schema import ANCHORS, RAW, UNLEARNED, Status
from leaderboard.ranking.headlines import NONE
from leaderboard.ranking.retention_matching import METRIC, PROBE
from leaderboard.ranking.synthetic import synthetic_rows
from suite.attacks import ATTACKS
from suite.engines import Engine
from suite.evaluation.evaluator import Evaluated, Failed
from suite.evaluation.landscape import Reading
from suite.evaluation.trial_rows import Row
from suite.storage.provenance import observed
from tasks import TASKS
from tasks.scoring import METRICS, SUMMARIES, Estimate, Metric, SummaryMetric, score, summarise
from tasks.task import Headline, Probe, Sample, Split, Subset, Summary, Task

BOTH_SPLITS = "all"
"""The split of rows over the questions of both splits, as in published numbers."""

UNATTACKED = "unattacked"
"""The reference of summaries that compare an attacked model with the same model without the attack."""

Samples = Mapping[str, Sequence[Sample]]
"""Samples by probe."""


@dataclass(frozen=True)
class SubjectSamples:
    """The samples of a subject by probe, after an attack, at a point of the attack's curve.

    Attributes:
        id: id of the evaluation that the samples come from; None where there are no samples.
        probes: the probes without the attack's changes.
        matching: which weights of the subject the samples come from.
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
        common = (e.subject, e.attack.name, e.point, str(e.split), probes)
        if isinstance(evaluated, Failed):
            return cls(*common, {}, None, e.matching, evaluated.reason)
        return cls(*common, evaluated.samples, evaluated.artifact.key, e.matching)

    @classmethod
    def empty(cls, subject: str, split: str, matching: str = RAW) -> Self:
        """No samples, for numbers about a subject that need none."""
        return cls(subject, NONE, 0, str(split), {}, {}, None, matching)

    @property
    def model_and_split(self) -> tuple[str, str, str]:
        """Identifies the model and the questions, independent of the attack."""
        return self.subject, self.matching, self.split

    def joined_with(self, other: SubjectSamples) -> SubjectSamples:
        """The samples of both splits together, from what is stored already."""
        samples = {name: [*self.samples[name], *other.samples[name]] for name in self.samples}
        return replace(self, split=BOTH_SPLITS, samples=samples, id=f"{self.id}:{other.id}")


def both_splits(collected: Sequence[SubjectSamples]) -> list[SubjectSamples]:
    """Samples over both splits together, for every subject that has both without an attack."""
    unattacked = {measured.model_and_split: measured for measured in collected if measured.attack == NONE}
    return [
        measured.joined_with(other)
        for (subject, matching, split), measured in unattacked.items()
        if split == Split.DEV and (other := unattacked.get((subject, matching, str(Split.TEST))))
    ]


@dataclass
class Scorer:
    """Turns samples into rows. It remembers the samples without an attack, which comparing summaries need.

    Attributes:
        anchors: id of the anchors' recipe, the trial id in the anchors' rows.
        anchor_ids: digests of the anchors' weights.
        scale: the same of all pairs of anchors, for rows that are not the anchors'; None where there is one pair.
    """

    task: Task
    engine: Engine
    anchors: str | None = None
    anchor_ids: str | None = None
    scale: tuple[str, str] | None = None
    _unattacked: dict[tuple[str, str, str], Samples] = field(default_factory=dict)

    def rows(self, collected: Sequence[SubjectSamples], trial: str | None) -> dict[str | None, list[Row]]:
        """One row per number, by the trial id in the rows: the trial's own, or the anchors'."""
        for measured in collected:
            if measured.attack == NONE:
                self._unattacked[measured.model_and_split] = measured.samples
        by_trial: dict[str | None, list[Row]] = {}
        for measured in collected:
            trial_id = self.anchors if measured.subject in ANCHORS else trial
            by_trial.setdefault(trial_id, []).extend(self._rows_of(measured, trial_id))
        return by_trial

    def item_rows(self, collected: Iterable[SubjectSamples]) -> list[Row]:
        """What the headlines are the means of, item by item. Numbers over both splits are made of these.

        With the target's come those of the models that do not exist, so that a board shows them without its samples.
        """
        headlines = dict.fromkeys((h.probe, h.metric) for h in (*self.task.knowledge, *self.task.utility))
        rows: list[Row | None] = []
        for measured in collected:
            if not measured.id or measured.split == BOTH_SPLITS:
                continue
            for probe, metric in headlines:
                if samples := measured.samples.get(probe):
                    key = Key(measured.id, probe, metric)
                    rows.append(item_row(key, samples))
                    if (measured.subject, measured.attack) == (ANCHORS[0], NONE):
                        rows += synthetic_rows(key, samples)
        return [row for row in rows if row is not None]

    def matching_row(self, trial: str, matching: str, split: Split, share: Estimate) -> Row:
        """The share of the unlearned weights at which utility is at the floor."""
        return self._row(SubjectSamples.empty(UNLEARNED, split, matching), trial, PROBE, Subset.RETAIN, METRIC, share)

    def landscape_rows(self, trial: str, readings: Iterable[Reading]) -> list[Row]:
        """Readings of the loss landscape around the unlearned weights, on texts of both splits."""
        measured = SubjectSamples.empty(UNLEARNED, BOTH_SPLITS)
        return [
            self._row(
                *(measured, trial, "landscape", reading.subset, reading.metric),
                Estimate(reading.value, reading.stderr, reading.n, reading.reason),
                reading.direction,
            )
            for reading in readings
        ]

    def _rows_of(self, measured: SubjectSamples, trial: str | None) -> Iterator[Row]:
        roles = {**_roles("knowledge", self.task.knowledge), **_roles("utility", self.task.utility)}
        samples = measured.samples
        for name, probe in measured.probes.items():
            for metric in probe.metrics:
                role = roles.get((name, metric), (None, None))
                number = _failed(measured) or score(metric, samples[name])
                yield self._row(measured, trial, name, probe.subset, metric, number, _direction(METRICS[metric]), role)
        for summary in self.task.summaries:
            for metric in summary.metrics:
                kind = SUMMARIES[metric]
                other = self._reference(measured, kind.against) if kind.against else None
                number = _failed(measured) or summarise(
                    metric, _tables(summary, samples), _tables(summary, other) if other else None
                )
                yield self._row(measured, trial, summary.name, summary.subset, metric, number, _direction(kind))

    def _reference(self, measured: SubjectSamples, against: str) -> Samples | None:
        """The samples to compare with: those of an anchor, or of the subject itself, without an attack."""
        key = measured.model_and_split if against == UNATTACKED else (against, RAW, measured.split)
        return self._unattacked.get(key)

    def _row(
        self,
        measured: SubjectSamples,
        trial: str | None,
        probe: str,
        subset: str,
        metric: str,
        number: Estimate,
        direction: str | None = None,
        role: tuple[str | None, float | None] = (None, None),
    ) -> Row:
        scale = None if measured.subject in ANCHORS else self.scale
        anchors, anchor_ids = scale or (self.anchors, self.anchor_ids)
        return {
            "trial": trial,
            "subject": measured.subject,
            "attack": measured.attack,
            "point": measured.point,
            "probe": probe,
            "subset": str(subset),
            "split": measured.split,
            "matching": measured.matching,
            "engine": self.engine.name,
            "metric": metric,
            "value": number.value,
            "stderr": number.stderr,
            "n": number.n,
            "direction": direction,
            "headline": role[0],
            "chance": role[1],
            "status": str(Status.OK if number.known else Status.FAILED if measured.failed else Status.NULL),
            "reason": number.reason,
            "task": self.task.name,
            "task_version": self.task.version,
            "data": self.task.data,
            "anchors": anchors,
            "anchor_ids": anchor_ids,
            "samples": measured.id,
            "engine_version": self.engine.version,
            "dtype": self.engine.dtype,
            "batch_invariant": self.engine.batch_invariant,
            "plugins": as_column(
                {
                    "attack": ATTACKS.package(measured.attack.partition("[")[0]),
                    "metric": METRICS.package(metric) or SUMMARIES.package(metric),
                    "task": TASKS.package(self.task.name),
                }
            ),
            "source": self.task.source or None,
            **observed(),
        }


def _direction(metric: Metric | SummaryMetric) -> str:
    return "up" if metric.up else "down"


def _failed(measured: SubjectSamples) -> Estimate | None:
    return Estimate.null(measured.failed) if measured.failed else None


def _tables(summary: Summary, samples: Samples) -> list[Sequence[Sample]]:
    return [samples[probe] for probe in summary.probes]


def _roles(role: str, headlines: Sequence[Headline]) -> dict[tuple[str, str], tuple[str, float]]:
    return {(h.probe, h.metric): (role, h.chance) for h in headlines}
