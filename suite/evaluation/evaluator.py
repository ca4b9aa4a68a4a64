"""Evaluations: every (subject, attack, point) is asked once, its samples published as a stage, and scored for ever.

What is missing goes to the engine as one queue; what is published is read. An attack is only carried out when one of
its points is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from leaderboard.board import samples, schema
from leaderboard.board.files import BoardError
from leaderboard.board.schema import RAW
from leaderboard.ranking.headlines import NONE
from suite.attacks import Attack, AttackContext, Subject
from suite.config.canonical import digest
from suite.config.errors import StageError
from suite.engines import Engine, Job, ask
from suite.engines.base import JobResult
from suite.models.checkpoints import Checkpoint, KeyedCheckpoint
from suite.storage.environment import Numeric
from suite.storage.stages import Artifact, StageStore
from tasks.scoring import Estimate, score
from tasks.task import Headline, Probe, Sample, Split, Task

VERSION = 1
"""Raised when the same question to the same weights gives other samples."""
KIND = "samples"


@dataclass(frozen=True)
class Evaluation:
    """One thing to be measured: a subject after an attack, at a point of the attack's curve, on one split.

    Attributes:
        matching: which weights of the subject these are: as they are, or mixed with the target's.
    """

    subject: str
    weights: KeyedCheckpoint
    attack: Attack
    point: int
    split: Split
    probes: tuple[Probe, ...]
    matching: str = RAW

    def inputs(self, engine: Engine, context: AttackContext, numeric: Numeric) -> dict[str, Any]:
        attack: dict[str, Any] | None = None
        if self.attack.name != NONE:
            attack = {
                "settings": self.attack.settings.changed(),
                "version": self.attack.version,
                "point": self.point,
                "seed": context.seed,
                "texts": context.digest,
                **self.attack.reads(self.probes, context),
            }
        return {
            "version": VERSION,
            "weights": self.weights.key,
            "part": self.weights.part,
            "attack": attack,
            "probes": {probe.name: probe.digest for probe in self.probes},
            "engine": engine.identity(),
            "template": str(context.encoder.template),
            "numeric": numeric.as_dict(),
        }


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with its samples by probe; `artifact` holds them as Parquet."""

    evaluation: Evaluation
    artifact: Artifact

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        return read_samples(self.artifact.file("samples.parquet"), [probe.name for probe in self.evaluation.probes])


@dataclass(frozen=True)
class Failed:
    """An attacked subject that could not be measured, and why."""

    evaluation: Evaluation
    reason: str


class Evaluator:
    """Carries out attacks and asks, where nobody has yet."""

    def __init__(self, engine: Engine, context: AttackContext, store: StageStore, numeric: Numeric) -> None:
        self.engine, self.context, self.store, self.numeric = engine, context, store, numeric

    def run(self, evaluations: Sequence[Evaluation]) -> Iterator[Evaluated | Failed]:
        """Each evaluation with its samples, in the order in which they are to be had.

        Subjects that are the same weights are asked once, and each gets the answers. An attack that fails takes only
        its own evaluations with it.

        Raises:
            CheckpointError, ...: a subject cannot be asked even without an attack.
            StageError: something stored is damaged, or the disk is full.
        """
        queue = _Queue(self, evaluations)
        for answer in self.engine.submit(queue.jobs()):
            if answer.error is not None:
                queue.failed([answer.key], answer.error)
            else:
                yield from queue.answered(answer)
            yield from queue.taken()
        yield from queue.taken()


class _Queue:
    """What is to be measured: what is missing becomes jobs, what is there or fails is taken out on the way."""

    def __init__(self, evaluator: Evaluator, evaluations: Sequence[Evaluation]) -> None:
        self.evaluator, self.store = evaluator, evaluator.store
        self._inputs: dict[str, dict[str, Any]] = {}
        self._same: dict[str, list[Evaluation]] = {}
        for evaluation in evaluations:
            inputs = evaluation.inputs(evaluator.engine, evaluator.context, evaluator.numeric)
            key = StageStore.key(KIND, inputs)
            self._inputs[key] = inputs
            self._same.setdefault(key, []).append(evaluation)
        self._ready: list[Evaluated | Failed] = []

    def jobs(self) -> Iterator[Job]:
        """Attack by attack, while nobody else is at work on it."""
        curves: dict[tuple[str, str, str, str], dict[int, str]] = {}
        for key, (e, *_) in self._same.items():
            curves.setdefault((e.weights.key, e.weights.part, e.attack.name, e.split), {})[e.point] = key
        for name, points in curves.items():
            with self.store.leases.hold(f"attack-{digest([*name, *points.values()])}"):
                missing = {}
                for point, key in points.items():
                    if artifact := self.store.find(KIND, key):
                        self._ready += [Evaluated(evaluation, artifact) for evaluation in self._same[key]]
                    else:
                        missing[point] = key
                yield from self._carried_out(missing)

    def _carried_out(self, missing: dict[int, str]) -> Iterator[Job]:
        """The attack's missing points; those that it does not come to have failed."""
        if not missing:
            return
        first = self._same[next(iter(missing.values()))][0]
        attacked = first.attack.apply(Subject(first.weights.checkpoint, first.probes), self.evaluator.context)
        while missing:
            try:
                point, subject = next(attacked)
            except Exception as error:
                self.failed(missing.values(), error.with_traceback(None))
                return
            if point in missing:
                yield Job(missing.pop(point), subject.checkpoint, subject.probes)

    def answered(self, answer: JobResult) -> Iterator[Evaluated]:
        """Publish samples."""
        artifact = self.store.run(
            KIND, self._inputs[answer.key], lambda folder: write_samples(folder, answer.key, answer.samples)
        )
        yield from (Evaluated(evaluation, artifact) for evaluation in self._same[answer.key])

    def failed(self, keys: Iterable[str], error: Exception) -> None:
        """Note what could not be measured. Nothing is left to be told of a subject that cannot be asked at all."""
        for key in keys:
            for evaluation in self._same[key]:
                if evaluation.attack.name == NONE:
                    raise error
                self._ready.append(Failed(evaluation, f"{type(error).__name__}: {error}"[:2000]))

    def taken(self) -> Iterator[Evaluated | Failed]:
        """What became known without the engine since this was asked last."""
        ready, self._ready = self._ready, []
        yield from ready


def estimates(
    checkpoint: Checkpoint, headlines: Sequence[Headline], task: Task, split: Split, engine: Engine
) -> dict[Headline, Estimate]:
    """What headlines come to on a split for weights on their way somewhere, asked for nothing else.

    Raises:
        CheckpointError, ...: the checkpoint cannot be asked.
    """
    samples = ask(engine, checkpoint, task.probes_behind(headlines, split))
    return {headline: score(headline.metric, samples[headline.probe]) for headline in headlines}


def write_samples(folder: Path, key: str, answers: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Samples as a file of the board's `samples` table."""
    rows = [
        {"samples": key, "probe": probe, **asdict(sample), "scalars": list(sample.scalars) or None}
        for probe, of_probe in answers.items()
        for sample in of_probe
    ]
    pq.write_table(schema.to_arrow("samples", rows), folder / "samples.parquet", compression="zstd")
    return {"rows": len(rows)}


def read_samples(path: Path, probes: Sequence[str]) -> dict[str, list[Sample]]:
    """The samples in such a file, by probe.

    Raises:
        StageError: the file is damaged.
    """
    found: dict[str, list[Sample]] = {probe: [] for probe in probes}
    try:
        for _, (_, probe), sample in samples.read_samples(path, probes, 0, samples.count_rows(path)):
            found[probe].append(sample)
    except BoardError as error:
        raise StageError(f"{path}: damaged ({error}). Delete its manifest and run again") from None
    return found


def evaluations_of(
    subject: str,
    weights: KeyedCheckpoint,
    task: Task,
    split: Split,
    attacks: Sequence[Attack],
    matching: str = RAW,
) -> list[Evaluation]:
    """Everything to measure of one subject on one split."""
    probes = task.probes_of(split)
    return [
        Evaluation(subject, weights, attack, point, split, probes, matching)
        for attack in attacks
        for point in attack.points
    ]
