"""A checkpoint measured on a task by itself, without a trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from leaderboard.board.schema import UNLEARNED
from leaderboard.ranking.headlines import Headlines
from suite.config.errors import SpecError, UnsuitableError
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.engines.agreement import Agreement, agreement
from suite.engines.choosing import check_heads, check_here, chosen_engine, engine_alone
from suite.evaluation.trial_rows import Row
from suite.models.checkpoints import heads_of
from suite.models.lengths import check_lengths
from suite.models.loading import BaseModel, resolve_model
from suite.models.parameter_names import model_without_weights
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.storage.environment import numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchor, Anchors, given_anchor
from suite.trials.harness import Harness, headlines_of
from suite.trials.preflight import check_attacks
from suite.trials.task_data import TaskData
from tasks.task import Probe, Task, Zero


@dataclass(frozen=True)
class CheckpointResult:
    """The measurements of a checkpoint.

    Attributes:
        rows: the checkpoint's rows, as in the table `measurements`.
        headlines: by split, F, R and U as far as the anchors were measured too.
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
) -> CheckpointResult:
    """Measure a checkpoint on a task, without an attack and under each attack.

    Args:
        checkpoint: folder or hub id.
        model: dtype and template; its name is not read.
        anchors: folders or hub ids of `target` and `retrained`, for metrics that compare with them; attacked too.
        measure: attacks, splits, limit and extras; with both splits there are also rows over both together.

    Raises:
        RequestError: a model cannot be found or used, an attack cannot be run, or the task's data is missing or
            malformed.
    """
    runtime = runtime or RuntimeSpec()
    check_here(measure, runtime)
    data = TaskData.load(task_name, measure)
    anchor_names = {subject: name for subject, name in (anchors or {}).items() if name}
    for split, attacks in data.attacks.items():
        for attack in attacks:
            attack.check(data.full_task, split)
            if attack.needs_target and "target" not in anchor_names:
                raise SpecError(f"--target: missing. {attack.name} needs the model before unlearning")
    base = resolve_model(model, checkpoint, "checkpoint", finite=False)
    check_attacks(measure, task_name, model_without_weights(model, checkpoint, "checkpoint"))
    anchor_models = {subject: resolve_model(model, name, f"--{subject}") for subject, name in anchor_names.items()}
    for subject, other in anchor_models.items():
        if other.encoder.tokenizer.get_vocab() != base.encoder.tokenizer.get_vocab():
            raise UnsuitableError(
                f"--{subject}: has another vocabulary than the checkpoint, so their answers do not compare"
            )
    _check_model(base, data.task, measure)
    with numeric(runtime) as device:
        given_anchors = {subject: given_anchor(other, store) for subject, other in anchor_models.items()}
        harness = Harness.assembled(
            data,
            base,
            chosen_engine(measure, base.encoder, dtype=model.dtype, device=device),
            store,
            runtime,
            device,
            trial=(unlearned := given_anchor(base, store)).key,
            anchors=_both_anchors(data.task, base, given_anchors),
            target=given_anchors.get("target"),
        )
        models = {UNLEARNED: unlearned, **given_anchors}
        rows = harness.measure([*harness.unattacked(models), *harness.attacked(models)])
    headlines = {
        str(split): headlines_of(rows, split, attacks, harness.scorer.anchor_ids)
        for split, attacks in data.covered.items()
    }
    return CheckpointResult([row for row in rows if row["subject"] == UNLEARNED], headlines)


def _both_anchors(task: Task, base: BaseModel, given: Mapping[str, Anchor]) -> Anchors | None:
    """Both anchors; None where one is missing. Chance replaces the retrained model only on a task that allows it."""
    target, retrained = given.get("target"), given.get("retrained")
    if target and (retrained or task.anchored is Zero.CHANCE):
        return Anchors(base, target, retrained)
    return None


def _check_model(model: BaseModel, task: Task, measure: MeasureSpec) -> None:
    """Check that the engine can run a model, and that every question fits the model's context.

    Raises:
        UnsuitableError: what does not fit.
    """
    check_heads(measure, heads_of(model.checkpoint.architecture), "checkpoint")
    check_lengths(replace(task, forget={}, retain=()), model.encoder, model.context, _probes(task, measure))


def _probes(task: Task, measure: MeasureSpec) -> list[Probe]:
    """The task's probes on the splits of the measurement."""
    return [probe for split in measure.asked for probe in task.probes_of(split)]


def cross_check(
    checkpoint: str, task_name: str, model: ModelSpec, measure: MeasureSpec, runtime: RuntimeSpec
) -> list[Agreement]:
    """Compare the responses of the transformers engine and of another one, which computes all of its own.

    Raises:
        RequestError: as `measure_checkpoint`; the engine cannot be used here.
        CheckpointError, EngineError: the checkpoint cannot be evaluated.
    """
    check_here(measure, runtime)
    task = TaskData.load(task_name, measure).task
    base = resolve_model(model, checkpoint, "checkpoint")
    _check_model(base, task, measure)
    with numeric(runtime) as device:
        transformers = TransformersEngine(
            base.encoder, dtype=model.dtype, device=device, batch_tokens=measure.batch_tokens
        )
        other = engine_alone(measure, base.encoder, dtype=model.dtype, device=device)
        return agreement(base.checkpoint, _probes(task, measure), base.encoder, transformers, other)
