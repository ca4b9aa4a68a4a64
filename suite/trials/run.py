"""One trial from end to end: anchors, unlearning, evaluation, retention matching, attacks, diagnostics.

The result depends on the arguments alone. Everything costly is cached as a stage, so a killed trial resumes where it
stopped and a repeated one computes nothing. How trials are distributed is the business of `suite.runners`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from leaderboard.board.schema import UNLEARNED, Status
from leaderboard.ranking.headlines import Headlines
from suite.config.runtime import RuntimeSpec
from suite.engines import Engine
from suite.engines.choosing import chosen_engine
from suite.evaluation.landscape import check_names, landscape
from suite.evaluation.trial_rows import Row, step_rows, trial_row
from suite.models.checkpoints import Checkpoint, KeyedCheckpoint, SavedCheckpoint
from suite.models.encoding import Encoder
from suite.spec.measure import MeasureSpec
from suite.spec.random_change import AnyTrial, RandomChange
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import Artifact
from suite.storage.store import Store
from suite.training.anchors import Anchors, prepare_anchors
from suite.training.random_change import randomly_changed
from suite.training.unlearning import unlearn
from suite.trials.harness import Harness, headlines_of
from suite.trials.matching import MixingCurve
from suite.trials.on_dev import OnDev, Report
from suite.trials.task_data import TaskData
from tasks.task import Split

OnStage = Callable[[str, Sequence[Row]], bool | None]
"""Called after each stage with its name and the rows that it produced. A true answer to `evaluate` ends the trial."""

MakeEngine = Callable[[Encoder, torch.device], Engine]
"""Makes the inference engine from the model's encoder and the device."""


@dataclass(frozen=True)
class TrialResult:
    """The results of a trial.

    Attributes:
        row: the trial's row, as on the board.
        attacks: by split, the attacks that robustness covers, by their names with their own seeds.
        measurements: all rows that this run published: of the unlearned model, its checkpoints and the anchors.
    """

    spec: AnyTrial
    row: Row
    attacks: Mapping[Split, Sequence[str]]
    measurements: Sequence[Row]

    @property
    def failures(self) -> list[str]:
        """Attacks that failed and why, one sentence each."""
        failed = [row for row in self.measurements if row["status"] == Status.FAILED]
        return list(dict.fromkeys(f"{row['attack']} failed: {row['reason']}" for row in failed))

    def headlines(self, split: Split) -> Headlines:
        """F, R, U and score on a split, over the attacks of the measurement."""
        return headlines_of(self.measurements, split, self.attacks[split], self.row["anchor_ids"])


def run_trial(
    spec: AnyTrial,
    store: Store,
    *,
    measure: MeasureSpec | None = None,
    runtime: RuntimeSpec | None = None,
    make_engine: MakeEngine | None = None,
    search: str | None = None,
    on_stage: OnStage = lambda stage, rows: None,
    report: Report | None = None,
) -> TrialResult:
    """Run a trial, or the part of it that is not in the store yet, and put its rows on the board.

    A null trial differs in where its weights come from, and in nothing else.

    Args:
        search: the search that it is a part of, for its row.
        make_engine: by default makes the engine that `measure` names.
        on_stage: called after each stage; may end the trial once the models were evaluated without an attack.
        report: called with the numbers on dev at each intermediate checkpoint (`checkpoints.every`), which are measured
            for it, and may stop the trial. They are the same whether the checkpoints are made now or were before.

    Raises:
        StoppedByScheduler: `report` said so. The run of unlearning is saved, and nothing is on the board.
        RequestError: the trial cannot be run as specified.
        CheckpointError, EngineError: a model cannot be evaluated even without an attack.
        StageError, BoardError, StorageError: something stored is damaged, or the disk is full.
    """
    measure, runtime = measure or MeasureSpec(), runtime or RuntimeSpec()
    check_names(measure.landscape)
    make_engine = make_engine or _engine_of(measure, spec)
    data = TaskData.load(spec.task, measure, spec.anchors.retain_limit)
    environment = Numeric.of(runtime)
    with numeric(runtime) as device:
        anchors = prepare_anchors(spec, data.task, store.stages, runtime)
        on_stage("anchors", [])

        harness = _harness(spec, data, anchors, make_engine(anchors.base.encoder, device), store, runtime, device)
        if isinstance(spec, RandomChange):
            stages = [randomly_changed(spec, anchors, store.stages, runtime)]
        else:
            on_dev = OnDev(data.task, anchors, harness.engine)

            def on_checkpoint(step: int, checkpoint: Checkpoint) -> bool | None:
                return report(on_dev.progress(step, checkpoint)) if report else None

            criterion = on_dev if spec.until else None
            stages = unlearn(spec, data.task, anchors, store.stages, runtime, criterion, on_checkpoint)
            store.board.append("steps", step_rows(spec, data.task, stages))
        trial = trial_row(spec, data.task, anchors, stages, environment) | {"search": search}
        on_stage("unlearn", [])

        unlearned = _final_checkpoint(stages)
        models = {**anchors.subjects, UNLEARNED: unlearned}
        evaluated = harness.measure(harness.unattacked({**models, **_intermediate_checkpoints(stages)}))
        others = [(harness.beside(pair), pair.subjects) for pair in anchors.further]
        for beside, pair in others:
            evaluated += beside.measure(beside.unattacked(pair))
        stop = on_stage("evaluate", evaluated)

        # A trial that stops here is valid but lacks its attacks; the next run adds them.
        if not stop:
            attacks = harness.attacked(models)
            if measure.match:
                curve = MixingCurve(harness, trial, anchors, unlearned, measure.match)
                rows, further = curve.measure(measure.attacked)
                if rows:
                    on_stage("match", rows)
                attacks += further
            attacked = harness.measure(attacks)
            for beside, pair in others:
                attacked += beside.measure(beside.attacked(pair))
            on_stage("attack", attacked)

            if measure.landscape:
                readings = landscape(measure.landscape, unlearned, anchors, data.task, store.stages, runtime)
                on_stage("landscape", harness.publisher.publish_landscape(readings))
        store.board.append("trials", [trial])
    return TrialResult(spec, trial, data.covered, harness.publisher.rows)


def _engine_of(measure: MeasureSpec, spec: AnyTrial) -> MakeEngine:
    """The engine that the measurement names, with the dtype of the trial's model."""
    return lambda encoder, device: chosen_engine(measure, encoder, dtype=spec.model.dtype, device=device)


def _harness(
    spec: AnyTrial,
    data: TaskData,
    anchors: Anchors,
    engine: Engine,
    store: Store,
    runtime: RuntimeSpec,
    device: torch.device,
) -> Harness:
    """The harness that evaluates and attacks the trial's models and its anchors, and publishes to the store's board."""
    return Harness.assembled(
        data,
        anchors.base,
        engine,
        store.stages,
        runtime,
        device,
        trial=spec.id,
        anchors=anchors,
        target=anchors.target,
        board=store.board,
    )


def _final_checkpoint(stages: Sequence[Artifact]) -> KeyedCheckpoint:
    """The unlearned weights: the final checkpoint of the last forget request."""
    last = stages[-1]
    return KeyedCheckpoint(SavedCheckpoint(last.folder / "final"), last.key, "final")


def _intermediate_checkpoints(stages: Sequence[Artifact]) -> dict[str, KeyedCheckpoint]:
    """The intermediate checkpoints by subject, `unlearned@STEPS`; steps are counted over all forget requests."""
    checkpoints: dict[str, KeyedCheckpoint] = {}
    steps_before = 0
    for stage in stages:
        saved = [(steps_before + step, f"step{step}") for step in stage.meta["kept"]]
        steps_before += stage.meta["steps_done"]
        if stage is not stages[-1]:
            saved.append((steps_before, "final"))
        for step, part in saved:
            checkpoints[f"{UNLEARNED}@{step}"] = KeyedCheckpoint(SavedCheckpoint(stage.folder / part), stage.key, part)
    return checkpoints
