"""Evaluations: every (subject, attack, point) is asked once, its samples published as a stage, and scored for ever.

What is missing goes to the engine as one queue; what is published is read. An attack is only carried out when one of
its points is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from leaderboard import samples, schema
from leaderboard.files import BoardError
from suite.attacks import Attack, AttackContext, Subject
from suite.checkpoints import Checkpoint
from suite.engines import Engine, Job
from suite.environment import Numeric
from suite.spec import digest
from suite.stages import Artifact, StageError, StageStore
from tasks.task import Probe, Sample, Split, Task

VERSION = 1
"""Raised when the same question to the same weights gives other samples."""
KIND = "samples"


@dataclass(frozen=True)
class Evaluation:
    """One thing to be measured: a subject after an attack, at a point of the attack's curve, on one split.

    Attributes:
        weights: stage key of the subject's weights; `part` names the checkpoint within the stage.
    """

    subject: str
    checkpoint: Checkpoint
    weights: str
    part: str
    attack: Attack
    point: int
    split: Split
    probes: tuple[Probe, ...]

    def inputs(self, engine: Engine, context: AttackContext, numeric: Numeric) -> dict[str, Any]:
        attack: dict[str, Any] | None = None
        if self.attack.name != "none":
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
            "weights": self.weights,
            "part": self.part,
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


class Evaluator:
    """Carries out attacks and asks, where nobody has yet."""

    def __init__(self, engine: Engine, context: AttackContext, store: StageStore, numeric: Numeric) -> None:
        self.engine, self.context, self.store, self.numeric = engine, context, store, numeric

    def run(self, evaluations: Sequence[Evaluation]) -> Iterator[Evaluated]:
        """Each evaluation with its samples, in the order in which they are to be had.

        Subjects that are the same weights are asked once, and each gets the answers.
        """
        inputs = [e.inputs(self.engine, self.context, self.numeric) for e in evaluations]
        keys = [StageStore.key(KIND, one) for one in inputs]
        by_key = dict(zip(keys, zip(evaluations, inputs, strict=True), strict=True))
        same: dict[str, list[Evaluation]] = {}
        for key, evaluation in zip(keys, evaluations, strict=True):
            same.setdefault(key, []).append(evaluation)
        found: dict[str, Artifact] = {}
        for answer in self.engine.submit(self._jobs(by_key, found)):
            _, one = by_key[answer.key]
            artifact = self.store.run(KIND, one, lambda folder, a=answer: write_samples(folder, a.key, a.samples))
            yield from (Evaluated(evaluation, artifact) for evaluation in same[answer.key])
        for key, artifact in found.items():
            yield from (Evaluated(evaluation, artifact) for evaluation in same[key])

    def _jobs(self, by_key: Mapping[str, tuple[Evaluation, Any]], found: dict[str, Artifact]) -> Iterator[Job]:
        """What is missing, attack by attack, while nobody else is at work on it; what is not goes into `found`."""
        curves: dict[tuple[str, str, str, str], dict[int, str]] = {}
        for key, (e, _) in by_key.items():
            curves.setdefault((e.weights, e.part, e.attack.name, e.split), {})[e.point] = key
        for name, points in curves.items():
            with self.store.leases.hold(f"attack-{digest([*name, *points.values()])}"):
                missing = {}
                for point, key in points.items():
                    if artifact := self.store.find(KIND, key):
                        found[key] = artifact
                    else:
                        missing[point] = key
                if not missing:
                    continue
                first = by_key[next(iter(missing.values()))][0]
                for point, subject in first.attack.apply(Subject(first.checkpoint, first.probes), self.context):
                    if point in missing:
                        yield Job(missing[point], subject.checkpoint, subject.probes)


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
    subject: str, checkpoint: Checkpoint, weights: str, part: str, task: Task, split: Split, attacks: Sequence[Attack]
) -> list[Evaluation]:
    """Everything to measure of one subject on one split."""
    probes = task.probes_of(split)
    return [
        Evaluation(subject, checkpoint, weights, part, attack, point, split, probes)
        for attack in attacks
        for point in attack.points
    ]
