"""Evaluations: each (subject, attack, point) is sampled once, and its samples are stored as a stage to be scored later.

Missing evaluations go to the engine as one queue of jobs; stored ones are read back. An attack is only carried out if
the samples of at least one of its points are missing.
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
from suite.attacks import ATTACKS, Attack, AttackContext, Subject
from suite.config.canonical import digest
from suite.config.errors import EngineError, RegradeError, StageError
from suite.engines import Engine, Job, ask
from suite.engines.base import JobResult
from suite.models.checkpoints import Checkpoint, KeyedCheckpoint
from suite.models.outline import outline_of
from suite.storage.environment import Numeric
from suite.storage.stages import Artifact, StageStore
from tasks.scoring import Estimate, score
from tasks.task import Headline, Probe, Sample, Split, Task

VERSION = 1
"""Increased when the same prompts and the same weights give other samples."""
KIND = "samples"


@dataclass(frozen=True)
class Evaluation:
    """One subject to be measured after one attack, at one point of the attack's curve, on one split.

    Attributes:
        matching: whether these are the subject's own weights (`RAW`) or weights matched to a utility floor.
    """

    subject: str
    weights: KeyedCheckpoint
    attack: Attack
    point: int
    split: Split
    probes: tuple[Probe, ...]
    matching: str = RAW

    def inputs(self, engine: Engine, context: AttackContext, numeric: Numeric) -> dict[str, Any]:
        """Everything that the samples depend on: the inputs of their stage."""
        attack: dict[str, Any] | None = None
        if self.attack.name != NONE:
            attack = {
                "settings": self.attack.settings.changed(),
                "version": self.attack.version_for(self.weights.checkpoint.architecture),
                "point": self.point,
                "seed": context.seed,
                "texts": context.digest,
                **({"package": package} if (package := ATTACKS.package(self.attack.settings.name)) else {}),
                **self.attack.reads(self.probes, context),
            }
        return {
            "version": VERSION,
            "weights": self.weights.key,
            "part": self.weights.part,
            "attack": attack,
            "probes": {probe.name: probe.digest for probe in self.probes},
            "engine": engine.identity() | outline_of(self.weights.checkpoint.architecture).generation,
            "template": str(context.encoder.template),
            "numeric": numeric.as_dict(),
        }


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and its samples by probe, which `artifact` stores as Parquet."""

    evaluation: Evaluation
    artifact: Artifact

    @cached_property
    def samples(self) -> dict[str, list[Sample]]:
        return read_samples(self.artifact.file("samples.parquet"), [probe.name for probe in self.evaluation.probes])


@dataclass(frozen=True)
class Failed:
    """An evaluation of an attacked subject that failed, and why."""

    evaluation: Evaluation
    reason: str


class Evaluator:
    """Carries out the attacks and the inference of evaluations whose samples are not stored yet."""

    def __init__(self, engine: Engine, context: AttackContext, store: StageStore, numeric: Numeric) -> None:
        self.engine, self.context, self.store, self.numeric = engine, context, store, numeric

    def run(self, evaluations: Sequence[Evaluation]) -> Iterator[Evaluated | Failed]:
        """Yield each evaluation with its samples as soon as they are available.

        Subjects with the same weights are sampled once and share the samples. An attack that fails affects only its
        own evaluations.

        Raises:
            CheckpointError, ...: a subject cannot be evaluated even without an attack.
            StageError: something stored is damaged, or the disk is full.
        """
        queue = _Queue(self, evaluations)
        for result in self.engine.submit(queue.jobs()):
            if result.error is not None:
                queue.record_failure([result.key], result.error)
            else:
                yield from queue.store_samples(result)
            yield from queue.settled()
        yield from queue.settled()


class _Queue:
    """Evaluations by stage key: missing ones become jobs, stored and failed ones are set aside for `settled`."""

    def __init__(self, evaluator: Evaluator, evaluations: Sequence[Evaluation]) -> None:
        self.evaluator, self.store = evaluator, evaluator.store
        self._inputs: dict[str, dict[str, Any]] = {}
        self._evaluations: dict[str, list[Evaluation]] = {}  # several have one key where their weights are the same
        for evaluation in evaluations:
            inputs = evaluation.inputs(evaluator.engine, evaluator.context, evaluator.numeric)
            key = StageStore.key(KIND, inputs)
            self._inputs[key] = inputs
            self._evaluations.setdefault(key, []).append(evaluation)
        self._settled: list[Evaluated | Failed] = []

    def jobs(self) -> Iterator[Job]:
        """The jobs of missing evaluations, one attack after another.

        A lease per attack is held while its jobs are handed out, which only saves work.
        """
        curves: dict[tuple[str, str, str, str], dict[int, str]] = {}
        for key, (e, *_) in self._evaluations.items():
            curves.setdefault((e.weights.key, e.weights.part, e.attack.name, e.split), {})[e.point] = key
        for name, points in curves.items():
            with self.store.leases.hold(f"attack-{digest([*name, *points.values()])}"):
                missing = {}
                for point, key in points.items():
                    if artifact := self.store.find(KIND, key):
                        self._settled += [Evaluated(evaluation, artifact) for evaluation in self._evaluations[key]]
                    else:
                        missing[point] = key
                yield from self._jobs_of_attack(missing)

    def _jobs_of_attack(self, missing: dict[int, str]) -> Iterator[Job]:
        """A job for each missing point of one attack; points that the attack does not reach have failed."""
        if not missing:
            return
        first = self._evaluations[next(iter(missing.values()))][0]
        attacked = first.attack.apply(Subject(first.weights.checkpoint, first.probes), self.evaluator.context)
        while missing:
            try:
                point, subject = next(attacked)
            except StopIteration:
                points = ", ".join(map(str, missing))
                self.record_failure(missing.values(), RuntimeError(f"the attack ended before point {points}"))
                return
            except Exception as error:
                self.record_failure(missing.values(), error.with_traceback(None))
                return
            if point in missing:
                yield Job(missing.pop(point), subject.checkpoint, subject.probes)

    def store_samples(self, result: JobResult) -> Iterator[Evaluated]:
        """Publish the samples of a job as a stage, and yield the evaluations that they belong to."""
        artifact = self.store.run(
            KIND, self._inputs[result.key], lambda folder: write_samples(folder, result.key, result.samples)
        )
        yield from (Evaluated(evaluation, artifact) for evaluation in self._evaluations[result.key])

    def record_failure(self, keys: Iterable[str], error: Exception) -> None:
        """Record evaluations that failed.

        Raises:
            Exception: a subject fails without an attack: then nothing about it can be measured. An error whose message
                was not written for users becomes an EngineError that names the subject.
        """
        for key in keys:
            for evaluation in self._evaluations[key]:
                if evaluation.attack.name == NONE:
                    if isinstance(error, RegradeError):
                        raise error
                    what = f"{type(error).__name__}: {error}"
                    raise EngineError(f"{evaluation.subject} cannot be evaluated, {what}") from error
                self._settled.append(Failed(evaluation, f"{type(error).__name__}: {error}"[:2000]))

    def settled(self) -> Iterator[Evaluated | Failed]:
        """Evaluations that were read from the store or failed since the last call."""
        settled, self._settled = self._settled, []
        yield from settled


def estimates(
    checkpoint: Checkpoint, headlines: Sequence[Headline], task: Task, split: Split, engine: Engine
) -> dict[Headline, Estimate]:
    """Estimates of some headlines on a split for intermediate weights; only the probes behind them are evaluated.

    Raises:
        CheckpointError, ...: the checkpoint cannot be evaluated.
    """
    samples = ask(engine, checkpoint, task.probes_behind(headlines, split))
    return {headline: score(headline.metric, samples[headline.probe]) for headline in headlines}


def write_samples(folder: Path, key: str, by_probe: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Write samples as a file of the board's `samples` table."""
    rows = [
        {"samples": key, "probe": probe, **asdict(sample), "scalars": list(sample.scalars) or None}
        for probe, probe_samples in by_probe.items()
        for sample in probe_samples
    ]
    pq.write_table(schema.to_arrow("samples", rows), folder / "samples.parquet", compression="zstd")
    return {"rows": len(rows)}


def read_samples(path: Path, probes: Sequence[str]) -> dict[str, list[Sample]]:
    """The samples in a file of `write_samples`, by probe.

    Raises:
        StageError: the file is damaged.
    """
    by_probe: dict[str, list[Sample]] = {probe: [] for probe in probes}
    try:
        for _, (_, probe), sample in samples.read_samples(path, probes, 0, samples.count_rows(path)):
            by_probe[probe].append(sample)
    except BoardError as error:
        raise StageError(f"{path}: damaged ({error}). Delete its manifest and run again") from None
    return by_probe


def evaluations_of(
    subject: str,
    weights: KeyedCheckpoint,
    task: Task,
    split: Split,
    attacks: Sequence[Attack],
    matching: str = RAW,
) -> list[Evaluation]:
    """The evaluations of one subject on one split: every point of every attack."""
    probes = task.probes_of(split)
    return [
        Evaluation(subject, weights, attack, point, split, probes, matching)
        for attack in attacks
        for point in attack.points
    ]
