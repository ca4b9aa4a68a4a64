"""One trial from end to end: anchors, unlearning, attacks, evaluation, rows. A pure function of its arguments.

Everything costly is a stage, so a trial that was killed goes on where it stopped, and one that is run again computes
nothing. Nothing here knows how trials are distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from leaderboard.headlines import Headlines, headlines, zero
from suite.anchors import Anchors, anchors
from suite.attacks import AttackContext
from suite.checkpoints import Checkpoint, SavedCheckpoint
from suite.engines import Engine, Job, TransformersEngine
from suite.environment import Numeric, numeric
from suite.evaluation import Evaluation, Evaluator, evaluations_of
from suite.records import Answered, Row, Scorer, answers, both_splits, trial_row
from suite.spec import MeasureSpec, RuntimeSpec, TrialSpec
from suite.stages import Artifact
from suite.store import Store
from suite.text import Encoder
from suite.unlearning import Judge, unlearn
from tasks import EXTRAS, TASKS
from tasks.scoring import Estimate, score
from tasks.scoring.headline import knowledge, largest
from tasks.task import Split, Task, limited

ATTACK_SEED = 0
"""Attacks do not follow the trial's seed, so what the anchors went through serves every trial."""

Report = Callable[[str, Sequence[Row]], bool | None]
"""Told after each stage its name and the measurements that it brought; a true answer ends the trial there."""


@dataclass
class TrialResult:
    """What a trial brought.

    Attributes:
        row: the trial's row, as on the board.
        measurements: the trial's rows and its anchors', as on the board.
    """

    spec: TrialSpec
    row: Row
    anchors: str
    attacks: dict[Split, list[str]]
    measurements: list[Row] = field(default_factory=list)

    def headlines(self, split: Split) -> Headlines:
        """F, R, U and score on a split, over the attacks that were run on it."""

        def of(subject: str) -> list[Row]:
            return [r for r in self.measurements if r["subject"] == subject and r["split"] == split]

        models = {name: answers(name, of(name)) for name in ("unlearned", "target", "retrained")}
        forgotten = zero(self.row["anchor_ids"], models["target"], models["retrained"])
        return headlines(models["unlearned"], models["target"], forgotten, self.attacks[split])


def run_trial(
    spec: TrialSpec,
    store: Store,
    *,
    measure: MeasureSpec | None = None,
    runtime: RuntimeSpec | None = None,
    engine: Callable[[Encoder, torch.device], Engine] | None = None,
    report: Report = lambda stage, rows: None,
) -> TrialResult:
    """Run a trial, or what is missing of it, and put its rows on the board.

    Args:
        engine: makes the engine that answers, from the model's encoder and the device; by default the one that
            `measure` names.
        report: told after each stage; may end the trial.

    Raises:
        SpecError: the trial cannot be carried out as it stands.
        StageError, CheckpointError, BoardError: something stored is damaged, or the disk is full.
    """
    measure, runtime = measure or MeasureSpec(), runtime or RuntimeSpec()
    task = load_task(spec, measure)
    attacks = {split: measure.attacks_for(spec.task, split) for split in measure.splits}
    with numeric(runtime) as device:
        both = anchors(spec, task, store.stages, runtime)
        report("anchors", [])
        encoder, block = both.base.encoder, both.base.block(task)
        ask = (engine or _engine(spec, measure))(encoder, device)
        context = AttackContext(
            ask,
            encoder,
            task,
            ATTACK_SEED,
            device,
            target=both.target.checkpoint,
            target_key=both.target.key,
            block=block,
            gradient_checkpointing=runtime.gradient_checkpointing,
        )
        evaluator = Evaluator(ask, context, store.stages, Numeric.of(runtime))
        scorer = Scorer(task, ask, both.id, both.weights)
        result = TrialResult(spec, {}, both.id, {split: [a.name for a in of] for split, of in attacks.items()})

        def measured(stage: str, evaluations: Iterable[Evaluation]) -> bool:
            """Evaluate, score, publish; whether the trial is to end here."""
            answered = []
            for evaluated in evaluator.run(list(evaluations)):
                store.board.append_file("samples", evaluated.artifact.file("samples.parquet"), evaluated.artifact.key)
                answered.append(Answered.of(evaluated))
            rows = scorer.rows([*answered, *both_splits(answered)], spec.id)
            for of_trial in rows.values():
                of_trial.sort(
                    key=lambda r: (r["subject"], r["attack"], r["point"], r["split"], r["probe"], r["metric"])
                )
                store.board.append("measurements", of_trial)
                result.measurements += of_trial
            return bool(report(stage, [row for of_trial in rows.values() for row in of_trial]))

        def of_anchors(split: Split) -> list[Evaluation]:
            return [
                evaluation
                for subject, anchor in both.subjects.items()
                for evaluation in evaluations_of(
                    subject, anchor.checkpoint, anchor.key, "", task, split, attacks[split]
                )
            ]

        judge = _judge(task, both, ask) if spec.until else None
        stages = unlearn(spec, task, both, store.stages, runtime, judge, {"engine": ask.identity()})
        result.row = trial_row(spec, task, both, stages, Numeric.of(runtime))
        report("unlearn", [])
        clean, attacked = [], []
        for split in measure.splits:
            asked = [*of_anchors(split), *_final(task, stages, split, attacks[split])]
            clean += _kept(task, stages, split, attacks[split][:1])
            clean += [e for e in asked if e.attack.name == "none"]
            attacked += [e for e in asked if e.attack.name != "none"]
        # Whoever stops here leaves a sound trial that lacks attacks; the next run adds them.
        if not measured("evaluate", clean):
            measured("attack", attacked)
        store.board.append("trials", [result.row])
    return result


def load_task(spec: TrialSpec, measure: MeasureSpec) -> Task:
    """The trial's task, with as much retain text and as many items per probe as it asks for.

    Raises:
        TaskError: the task's data is missing or malformed.
    """
    task = asked_task(spec.task, measure)
    retain = task.retain[: spec.anchors.retain_limit] if spec.anchors.retain_limit else task.retain
    return replace(task, retain=retain)


def asked_task(name: str, measure: MeasureSpec) -> Task:
    """A task with the probes that are to be asked.

    Raises:
        TaskError: the task's data is missing or malformed.
    """
    task = TASKS[name].build()
    for extra in measure.also:
        task = EXTRAS[extra](task)
    return replace(task, probes=limited(task.probes, measure.limit)) if measure.limit else task


def _engine(spec: TrialSpec, measure: MeasureSpec) -> Callable[[Encoder, torch.device], Engine]:
    return lambda encoder, device: TransformersEngine(
        encoder, dtype=spec.model.dtype, device=device, batch_tokens=measure.batch_tokens
    )


def _final(task: Task, stages: Sequence[Artifact], split: Split, attacks: Sequence) -> list[Evaluation]:
    last = stages[-1]
    return evaluations_of("unlearned", SavedCheckpoint(last.folder / "final"), last.key, "final", task, split, attacks)


def _kept(task: Task, stages: Sequence[Artifact], split: Split, none: Sequence) -> list[Evaluation]:
    """The intermediate checkpoints, by the steps made until then, all requests together."""
    found: list[Evaluation] = []
    before = 0
    for stage in stages:
        ends = [(before + step, f"step{step}") for step in stage.meta["kept"]]
        before += stage.meta["steps_done"]
        if stage is not stages[-1]:
            ends.append((before, "final"))
        for step, part in ends:
            checkpoint = SavedCheckpoint(stage.folder / part)
            found += evaluations_of(f"unlearned@{step}", checkpoint, stage.key, part, task, split, none)
    return found


def _judge(task: Task, both: Anchors, engine: Engine) -> Judge:
    """Knowledge on dev, from the task's knowledge headlines alone."""
    wanted = {headline.probe for headline in task.knowledge}
    probes = tuple(probe for probe in task.probes_of(Split.DEV) if probe.name in wanted)

    def estimates(checkpoint: Checkpoint) -> dict:
        (answer,) = engine.submit([Job("judge", checkpoint, probes)])
        return {h: score(h.metric, answer.samples[h.probe]) for h in task.knowledge}

    target = estimates(both.target.checkpoint)
    retrained = (
        estimates(both.retrained.checkpoint)
        if both.retrained
        else {headline: Estimate(headline.chance, 0.0, target[headline].n) for headline in task.knowledge}
    )

    def judge(checkpoint: Checkpoint) -> float | None:
        now = estimates(checkpoint)
        return largest(knowledge(now[h], target[h], retrained[h]) for h in task.knowledge).value

    return judge
