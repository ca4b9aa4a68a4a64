"""One trial from end to end: anchors, unlearning, attacks, evaluation, rows. A pure function of its arguments.

Everything costly is a stage, so a trial that was killed goes on where it stopped, and one that is run again computes
nothing. Nothing here knows how trials are distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from leaderboard.board.schema import RAW, UNLEARNED, Status, matching
from leaderboard.ranking.headlines import Headlines
from suite.config.runtime import RuntimeSpec
from suite.engines import Engine
from suite.engines.choosing import chosen_engine
from suite.evaluation.landscape import landscape
from suite.evaluation.retention_matching import matched_weights, retention_match
from suite.evaluation.trial_rows import Row, trial_row
from suite.models.checkpoints import KeyedCheckpoint, SavedCheckpoint
from suite.models.encoding import Encoder
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import Artifact
from suite.storage.store import Store
from suite.training.anchors import Anchors, prepare_anchors
from suite.training.unlearning import unlearn
from suite.trials.early_stopping import KnowledgeOnDev
from suite.trials.harness import Harness, headlines_of
from suite.trials.task_data import TaskData
from tasks.task import Split

Report = Callable[[str, Sequence[Row]], bool | None]
"""Told after each stage its name and the measurements that it brought; a true answer ends the trial there."""

MakeEngine = Callable[[Encoder, torch.device], Engine]
"""Makes the engine that answers, from the model's encoder and the device."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial brought.

    Attributes:
        row: the trial's row, as on the board.
        attacks: by split, the names in rows of those that were carried out.
        measurements: the trial's rows and its anchors', as on the board.
    """

    spec: TrialSpec
    row: Row
    attacks: Mapping[Split, Sequence[str]]
    measurements: Sequence[Row]

    @property
    def failures(self) -> list[str]:
        """Attacks that failed, with the reasons, a sentence each."""
        failed = [row for row in self.measurements if row["status"] == Status.FAILED]
        return list(dict.fromkeys(f"{row['attack']} failed: {row['reason']}" for row in failed))

    def headlines(self, split: Split, name: str = RAW) -> Headlines:
        """F, R, U and score on a split, over the attacks that were carried out on it.

        Args:
            name: `matching` of the rows, for the weights as they are or as they were mixed.
        """
        return headlines_of(self.measurements, split, self.attacks[split], self.row["anchor_ids"], name)


def run_trial(
    spec: TrialSpec,
    store: Store,
    *,
    measure: MeasureSpec | None = None,
    runtime: RuntimeSpec | None = None,
    engine: MakeEngine | None = None,
    report: Report = lambda stage, rows: None,
) -> TrialResult:
    """Run a trial, or what is missing of it, and put its rows on the board.

    Args:
        engine: by default the one that `measure` names.
        report: told after each stage; may end the trial.

    Raises:
        SpecError: the trial cannot be carried out as it stands.
        StageError, CheckpointError, BoardError: something stored is damaged, or the disk is full.
    """
    measure, runtime = measure or MeasureSpec(), runtime or RuntimeSpec()
    data = TaskData.load(spec.task, measure, spec.anchors.retain_limit)
    numbers = Numeric.of(runtime)
    with numeric(runtime) as device:
        anchors = prepare_anchors(spec, data.task, store.stages, runtime)
        report("anchors", [])

        harness = Harness.assembled(
            data,
            anchors.base,
            (engine or _named_engine(spec, measure))(anchors.base.encoder, device),
            store.stages,
            runtime,
            device,
            trial=spec.id,
            anchors=anchors,
            target=anchors.target,
            board=store.board,
        )
        criterion = KnowledgeOnDev(data.task, anchors, harness.engine) if spec.until else None
        stages = unlearn(spec, data.task, anchors, store.stages, runtime, criterion)
        row = trial_row(spec, data.task, anchors, stages, numbers)
        report("unlearn", [])

        models = {**anchors.subjects, UNLEARNED: _final(stages)}
        # Whoever stops here leaves a sound trial that lacks attacks; the next run adds them.
        if not report("evaluate", harness.measure(harness.unattacked({**models, **_kept(stages)}))):
            evaluations = harness.attacked(models)
            if measure.match:
                name = matching(measure.match)
                if mixed := _mixed(harness, anchors, models[UNLEARNED], measure.match, numbers):
                    report("match", harness.measure(harness.unattacked(mixed, name)))
                    evaluations += harness.attacked(mixed, name)
            report("attack", harness.measure(evaluations))
            if measure.landscape:
                readings = landscape(measure.landscape, models[UNLEARNED], anchors, data.task, store.stages, runtime)
                report("landscape", harness.publisher.publish_landscape(readings))
        store.board.append("trials", [row])
    return TrialResult(spec, row, data.attack_names, harness.publisher.rows)


def _final(stages: Sequence[Artifact]) -> KeyedCheckpoint:
    """The unlearned weights."""
    last = stages[-1]
    return KeyedCheckpoint(SavedCheckpoint(last.folder / "final"), last.key, "final")


def _kept(stages: Sequence[Artifact]) -> dict[str, KeyedCheckpoint]:
    """The intermediate checkpoints, by the steps made until then, all requests together."""
    found: dict[str, KeyedCheckpoint] = {}
    before = 0
    for stage in stages:
        ends = [(before + step, f"step{step}") for step in stage.meta["kept"]]
        before += stage.meta["steps_done"]
        if stage is not stages[-1]:
            ends.append((before, "final"))
        for step, part in ends:
            found[f"{UNLEARNED}@{step}"] = KeyedCheckpoint(SavedCheckpoint(stage.folder / part), stage.key, part)
    return found


def _mixed(
    harness: Harness, anchors: Anchors, unlearned: KeyedCheckpoint, floor: float, numeric: Numeric
) -> dict[str, KeyedCheckpoint]:
    """The unlearned weights mixed back toward the target until utility reaches a floor, as one more model.

    How much of them is left is published; where utility cannot be matched, the reason is, and there is no such model.
    """
    task, stages = harness.data.task, harness.publisher.evaluator.store
    found = retention_match(unlearned, anchors, task, floor, harness.engine, stages, numeric)
    harness.publisher.publish_matching(matching(floor), found)
    return {} if found.share is None else {UNLEARNED: matched_weights(found.share, unlearned, anchors)}


def _named_engine(spec: TrialSpec, measure: MeasureSpec) -> MakeEngine:
    return lambda encoder, device: chosen_engine(measure, encoder, dtype=spec.model.dtype, device=device)
