"""A checkpoint by itself, without a trial: asked a task's questions and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from suite.anchors import found
from suite.attacks import AttackContext, attack
from suite.engines import TransformersEngine
from suite.environment import Numeric, numeric
from suite.evaluation import Evaluator, evaluations_of
from suite.lengths import check_lengths
from suite.models import found_model
from suite.records import Answered, Row, Scorer, both_splits
from suite.settings import SpecError
from suite.spec import MeasureSpec, ModelSpec, RuntimeSpec
from suite.stages import StageStore
from suite.trial import ATTACK_SEED, asked_task
from tasks.task import Split

SUBJECT = "unlearned"
"""The subject that rows call the checkpoint, as if a trial had made it."""


def measure_checkpoint(
    checkpoint: str,
    task_name: str,
    model: ModelSpec,
    store: StageStore,
    *,
    anchors: Mapping[str, str] | None = None,
    measure: MeasureSpec | None = None,
    runtime: RuntimeSpec | None = None,
) -> list[Row]:
    """The numbers of a checkpoint on a task, as rows of the table `measurements`.

    Args:
        checkpoint: folder or hub id.
        model: dtype and template; its name is not read.
        anchors: folders or hub ids of `target` and `retrained`, for numbers that compare with them.
        measure: splits, limit and extras; with both splits, rows for both together are among them.

    Raises:
        SpecError: a model that is not to be had, or is none.
        TaskError: the task's data is missing or malformed.
    """
    measure, runtime = measure or MeasureSpec(splits=tuple(Split)), runtime or RuntimeSpec()
    task = asked_task(task_name, measure)
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
    probes = [probe for split in measure.splits for probe in task.probes_of(split)]
    check_lengths(replace(task, forget={}, retain=()), base.encoder, base.context, probes)
    with numeric(runtime) as device:
        engine = TransformersEngine(base.encoder, dtype=model.dtype, device=device, batch_tokens=measure.batch_tokens)
        context = AttackContext(engine, base.encoder, task, ATTACK_SEED, device)
        none = [attack({"name": "none"})]
        places = {subject: found(other, store) for subject, other in models.items()}
        evaluations = [
            evaluation
            for subject, place in places.items()
            for split in measure.splits
            for evaluation in evaluations_of(subject, place.checkpoint, place.key, "", task, split, none)
        ]
        asked = Evaluator(engine, context, store, Numeric.of(runtime)).run(evaluations)
        answered = [Answered.of(evaluated) for evaluated in asked]
    rows = Scorer(task, engine).rows([*answered, *both_splits(answered)], places[SUBJECT].key)
    return rows[places[SUBJECT].key]
