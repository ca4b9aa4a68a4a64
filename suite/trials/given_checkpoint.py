"""A checkpoint by itself, without a trial: asked a task's questions and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from leaderboard.board.schema import UNLEARNED
from leaderboard.ranking.headlines import Headlines
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.engines import TransformersEngine
from suite.engines.agreement import Agreement, agreement
from suite.engines.choosing import check_heads, check_here, chosen_engine
from suite.evaluation.trial_rows import Row
from suite.models.checkpoints import heads_of
from suite.models.lengths import check_lengths
from suite.models.loading import BaseModel, found_model
from suite.models.settings import ModelSpec
from suite.spec.measure import MeasureSpec
from suite.storage.environment import numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchor, Anchors, given_anchor
from suite.trials.harness import Harness, headlines_of
from suite.trials.task_data import TaskData
from tasks.task import Task, Zero


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
    data = TaskData.load(task_name, measure)
    named = {subject: name for subject, name in (anchors or {}).items() if name}
    for split, attacks in data.attacks.items():
        for one in attacks:
            one.check(data.whole, split)
            if one.needs_target and "target" not in named:
                raise SpecError(f"--target: missing. {one.name} needs the model before unlearning")
    base = found_model(model, checkpoint, "checkpoint")
    models = {subject: found_model(model, name, f"--{subject}") for subject, name in named.items()}
    for subject, other in models.items():
        if other.encoder.tokenizer.get_vocab() != base.encoder.tokenizer.get_vocab():
            raise SpecError(f"--{subject}: has another vocabulary than the checkpoint, so their answers do not compare")
    _check(base, data.task, measure)
    with numeric(runtime) as device:
        found = {subject: given_anchor(other, store) for subject, other in models.items()}
        harness = Harness.assembled(
            data,
            base,
            chosen_engine(measure, base.encoder, dtype=model.dtype, device=device),
            store,
            runtime,
            device,
            trial=(unlearned := given_anchor(base, store)).key,
            anchors=_anchors(data.task, base, found),
            target=found.get("target"),
        )
        all_models = {UNLEARNED: unlearned, **found}
        rows = harness.measure([*harness.unattacked(all_models), *harness.attacked(all_models)])
    of = {
        str(split): headlines_of(rows, split, attacks, harness.scorer.anchor_ids)
        for split, attacks in data.attack_names.items()
    }
    return Measured([row for row in rows if row["subject"] == UNLEARNED], of)


def _anchors(task: Task, base: BaseModel, found: Mapping[str, Anchor]) -> Anchors | None:
    """Both anchors, where both are there: chance stands for the retrained model only on a task that says so."""
    target, retrained = found.get("target"), found.get("retrained")
    if target and (retrained or task.anchored is Zero.CHANCE):
        return Anchors(base, target, retrained)
    return None


def _check(model: BaseModel, task: Task, measure: MeasureSpec) -> None:
    """See that the engine can run a model, and that the model reads all of the questions.

    Raises:
        SpecError: what does not fit.
    """
    check_heads(measure, heads_of(model.checkpoint.architecture), "checkpoint")
    probes = [probe for split in measure.splits for probe in task.probes_of(split)]
    check_lengths(replace(task, forget={}, retain=()), model.encoder, model.context, probes)


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
    task = TaskData.load(task_name, measure).task
    found = found_model(model, checkpoint, "checkpoint")
    _check(found, task, measure)
    probes = [probe for split in measure.splits for probe in task.probes_of(split)]
    with numeric(runtime) as device:
        one = TransformersEngine(found.encoder, dtype=model.dtype, device=device, batch_tokens=measure.batch_tokens)
        other = VllmEngine(measure, found.encoder, dtype=model.dtype, device=device, alone=True)
        return agreement(found.checkpoint, probes, found.encoder, one, other)
