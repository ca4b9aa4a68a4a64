"""A checkpoint by itself, without a trial: asked a task's questions and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from leaderboard.ranking.headlines import AtChance, Headlines, headlines
from suite.attacks import AttackContext
from suite.config.runtime import RuntimeSpec
from suite.config.settings import SpecError
from suite.engines import TransformersEngine
from suite.engines.agreement import Agreement, agreement
from suite.engines.choosing import check_heads, check_here, chosen_engine
from suite.evaluation.evaluator import Evaluator, Weights, evaluations_of
from suite.evaluation.publishing import Publisher
from suite.evaluation.scoring import ANCHORS, Scorer, answers
from suite.evaluation.trial_rows import Row
from suite.models.checkpoints import heads_of
from suite.models.lengths import check_lengths
from suite.models.loading import found_model
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.storage.environment import Numeric, numeric
from suite.storage.stages import StageStore
from suite.training.anchors import found
from suite.trials.run import ATTACK_SEED
from suite.trials.task_data import as_asked, with_extras
from tasks.task import Zero

SUBJECT = "unlearned"
"""The subject that rows call the checkpoint, as if a trial had made it."""


@dataclass(frozen=True)
class Measured:
    """A checkpoint's numbers.

    Attributes:
        rows: of the checkpoint, as rows of the table `measurements`.
        headlines: by split, what is left of F, R and U where the anchors were measured too.
    """

    rows: list[Row]
    headlines: dict[str, Headlines]


def measure_checkpoint(
    checkpoint: str,
    task_name: str,
    model: ModelSpec,
    store: StageStore,
    *,
    anchors: Mapping[str, str] | None = None,
    measure: MeasureSpec,
    runtime: RuntimeSpec | None = None,
) -> Measured:
    """The numbers of a checkpoint on a task, without an attack and under each.

    Args:
        checkpoint: folder or hub id.
        model: dtype and template; its name is not read.
        anchors: folders or hub ids of `target` and `retrained`, for numbers that compare with them; attacked too.
        measure: attacks, splits, limit and extras; with both splits, rows for both together are among them.

    Raises:
        SpecError: a model that is not to be had, or is none; an attack that cannot be carried out.
        TaskError: the task's data is missing or malformed.
    """
    runtime = runtime or RuntimeSpec()
    check_here(measure, runtime)
    whole = with_extras(task_name, measure)
    task = as_asked(whole, measure)
    attacks = {split: measure.attacks_for(task_name, split) for split in measure.splits}
    for split, of_split in attacks.items():
        for one in of_split:
            one.check(whole, split)
            if one.needs_target and "target" not in (anchors or {}):
                raise SpecError(f"--target: missing. {one.name} needs the model before unlearning")
    models = {
        subject: found_model(model, name, key)
        for subject, name, key in (
            (SUBJECT, checkpoint, "checkpoint"),
            *((subject, name, f"--{subject}") for subject, name in (anchors or {}).items()),
        )
    }
    base = models[SUBJECT]
    for subject, other in models.items():
        if other.encoder.tokenizer.get_vocab() != base.encoder.tokenizer.get_vocab():
            raise SpecError(f"--{subject}: has another vocabulary than the checkpoint, so their answers do not compare")
    check_heads(measure, heads_of(base.checkpoint.architecture), "checkpoint")
    probes = [probe for split in measure.splits for probe in task.probes_of(split)]
    check_lengths(replace(task, forget={}, retain=()), base.encoder, base.context, probes)
    with numeric(runtime) as device:
        engine = chosen_engine(measure, base.encoder, dtype=model.dtype, device=device)
        places = {subject: found(other, store) for subject, other in models.items()}
        target = places.get("target")
        context = AttackContext(
            engine,
            base.encoder,
            whole,
            ATTACK_SEED,
            device,
            target=target.checkpoint if target else None,
            target_key=target.key if target else "",
            block=base.block(task),
            gradient_checkpointing=runtime.gradient_checkpointing,
        )
        evaluator = Evaluator(engine, context, store, Numeric.of(runtime))
        publisher = Publisher(evaluator, Scorer(task, engine), places[SUBJECT].key, None)
        publisher.measure(
            [
                evaluation
                for subject, place in places.items()
                for split, of_split in attacks.items()
                for evaluation in evaluations_of(subject, Weights(place.checkpoint, place.key), task, split, of_split)
            ]
        )
    of = {subject: [row for row in publisher.rows if row["subject"] == subject] for subject in (SUBJECT, *ANCHORS)}
    headlines_of = {}
    for split, of_split in attacks.items():
        mine, before, after = (answers(who, [r for r in rows if r["split"] == split]) for who, rows in of.items())
        forgotten = AtChance.beside(before) if task.anchored is Zero.CHANCE else after
        headlines_of[str(split)] = headlines(mine, before, forgotten, [one.name for one in of_split])
    return Measured(of[SUBJECT], headlines_of)


def cross_check(
    checkpoint: str, task_name: str, model: ModelSpec, measure: MeasureSpec, runtime: RuntimeSpec
) -> list[Agreement]:
    """How the transformers engine and vLLM agree on a checkpoint's answers, all of vLLM's its own.

    Raises:
        SpecError, TaskError: as `measure_checkpoint`; vLLM cannot be used here.
        CheckpointError, EngineError: the checkpoint cannot be asked.
    """
    from suite.engines.vllm.engine import VllmEngine

    check_here(measure, runtime)
    task = as_asked(with_extras(task_name, measure), measure)
    found = found_model(model, checkpoint, "checkpoint")
    check_heads(measure, heads_of(found.checkpoint.architecture), "checkpoint")
    probes = [probe for split in measure.splits for probe in task.probes_of(split)]
    check_lengths(replace(task, forget={}, retain=()), found.encoder, found.context, probes)
    with numeric(runtime) as device:
        one = TransformersEngine(found.encoder, dtype=model.dtype, device=device, batch_tokens=measure.batch_tokens)
        other = VllmEngine(measure, found.encoder, dtype=model.dtype, device=device, alone=True)
        return agreement(found.checkpoint, probes, found.encoder, one, other)
