"""One trial from end to end: anchors, unlearning, attacks, evaluation, rows. A pure function of its arguments.

Everything costly is a stage, so a trial that was killed goes on where it stopped, and one that is run again computes
nothing. Nothing here knows how trials are distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from leaderboard.board.schema import RAW, Status, matching
from leaderboard.ranking.headlines import Headlines, headlines, zero
from suite.attacks import AttackContext
from suite.config.runtime import RuntimeSpec
from suite.engines import Engine
from suite.engines.choosing import chosen_engine
from suite.evaluation.evaluator import Evaluation, Evaluator, Weights, estimates, evaluations_of
from suite.evaluation.landscape import landscape
from suite.evaluation.publishing import Publisher
from suite.evaluation.retention_matching import mixture, mixture_at
from suite.evaluation.scoring import ANCHORS, Scorer, answers
from suite.evaluation.trial_rows import Row, trial_row
from suite.models.checkpoints import Checkpoint, SavedCheckpoint
from suite.models.encoding import Encoder
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import Artifact
from suite.storage.store import Store
from suite.training.anchors import Anchors, anchors
from suite.training.unlearning import Judge, unlearn
from suite.trials.task_data import as_asked, load_task
from tasks.scoring import Estimate
from tasks.scoring.headline import knowledge, largest
from tasks.task import Headline, Split, Task

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

    @property
    def failures(self) -> list[str]:
        """Attacks that failed, with the reasons, a sentence each."""
        failed = [r for r in self.measurements if r["status"] == Status.FAILED]
        return list(dict.fromkeys(f"{r['attack']} failed: {r['reason']}" for r in failed))

    def headlines(self, split: Split, matching: str = RAW) -> Headlines:
        """F, R, U and score on a split, over the attacks that were run on it; the anchors are as they are."""

        def of(subject: str, matching: str = RAW) -> list[Row]:
            wanted = (subject, split, matching)
            return [r for r in self.measurements if (r["subject"], r["split"], r["matching"]) == wanted]

        models = {name: answers(name, of(name)) for name in ANCHORS}
        models["unlearned"] = answers("unlearned", of("unlearned", matching))
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
    whole = load_task(spec, measure)
    task = as_asked(whole, measure)
    attacks = {split: measure.attacks_for(spec.task, split) for split in measure.splits}
    with numeric(runtime) as device:
        both = anchors(spec, task, store.stages, runtime)
        report("anchors", [])
        encoder, block = both.base.encoder, both.base.block(task)
        answering = (engine or _engine(spec, measure))(encoder, device)
        context = AttackContext(
            answering,
            encoder,
            whole,
            ATTACK_SEED,
            device,
            target=both.target.checkpoint,
            target_key=both.target.key,
            block=block,
            gradient_checkpointing=runtime.gradient_checkpointing,
        )
        scorer = Scorer(task, answering, both.id, both.weights)
        publisher = Publisher(
            Evaluator(answering, context, store.stages, Numeric.of(runtime)), scorer, spec.id, store.board
        )
        result = TrialResult(
            spec, {}, both.id, {split: [a.name for a in of] for split, of in attacks.items()}, publisher.rows
        )
        judge = _judge(task, both, answering) if spec.until else None
        stages = unlearn(spec, task, both, store.stages, runtime, judge, {"engine": answering.identity()})
        result.row = trial_row(spec, task, both, stages, Numeric.of(runtime))
        report("unlearn", [])

        def under(chosen: slice, models: Mapping[str, Weights], matching: str = RAW) -> list[Evaluation]:
            """Models under some of each split's attacks."""
            return [
                evaluation
                for split in measure.splits
                for attack in attacks[split][chosen]
                for subject, weights in models.items()
                for evaluation in evaluations_of(subject, weights, task, split, [attack], matching)
            ]

        def measured(stage: str, evaluations: Sequence[Evaluation]) -> bool:
            """Whether the trial is to end here."""
            return bool(report(stage, publisher.measure(evaluations)))

        plain, attacked = slice(0, 1), slice(1, None)  # `none` is the first attack
        final = Weights(SavedCheckpoint(stages[-1].folder / "final"), stages[-1].key, "final")
        models = {name: Weights(anchor.checkpoint, anchor.key) for name, anchor in both.subjects.items()}
        models["unlearned"] = final
        # Whoever stops here leaves a sound trial that lacks attacks; the next run adds them.
        if not measured("evaluate", [*under(plain, models), *under(plain, _kept(stages))]):
            matched: list[Evaluation] = []
            if measure.match:
                name = matching(measure.match)
                mix = mixture(final, both, task, measure.match, answering, store.stages, Numeric.of(runtime))
                publisher.publish({spec.id: [scorer.mixing_row(spec.id, name, mix)]})
                if mix.share is not None:
                    mixed = {"unlearned": mixture_at(mix.share, final, both)}
                    measured("match", under(plain, mixed, name))
                    matched = under(attacked, mixed, name)
            measured("attack", [*under(attacked, models), *matched])
            lies = landscape(
                measure.landscape, final.checkpoint, f"{final.key}/{final.part}", both, task, store.stages, runtime
            )
            if lies:
                report("landscape", publisher.publish({spec.id: scorer.landscape_rows(spec.id, lies)}))
        store.board.append("trials", [result.row])
    return result


def _engine(spec: TrialSpec, measure: MeasureSpec) -> Callable[[Encoder, torch.device], Engine]:
    return lambda encoder, device: chosen_engine(measure, encoder, dtype=spec.model.dtype, device=device)


def _kept(stages: Sequence[Artifact]) -> dict[str, Weights]:
    """The intermediate checkpoints, by the steps made until then, all requests together."""
    found: dict[str, Weights] = {}
    before = 0
    for stage in stages:
        ends = [(before + step, f"step{step}") for step in stage.meta["kept"]]
        before += stage.meta["steps_done"]
        if stage is not stages[-1]:
            ends.append((before, "final"))
        for step, part in ends:
            found[f"unlearned@{step}"] = Weights(SavedCheckpoint(stage.folder / part), stage.key, part)
    return found


def _judge(task: Task, both: Anchors, engine: Engine) -> Judge:
    """Knowledge on dev, from the task's knowledge headlines alone."""

    def asked(checkpoint: Checkpoint) -> dict[Headline, Estimate]:
        return estimates(checkpoint, task.knowledge, task, Split.DEV, engine)

    target = asked(both.target.checkpoint)
    retrained = (
        asked(both.retrained.checkpoint)
        if both.retrained
        else {headline: Estimate(headline.chance, 0.0, target[headline].n) for headline in task.knowledge}
    )

    def judge(checkpoint: Checkpoint) -> float | None:
        now = asked(checkpoint)
        return largest(knowledge(now[h], target[h], retrained[h]) for h in task.knowledge).value

    return judge
