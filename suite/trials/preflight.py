"""Checks of trials before anything is computed, and their cost in loss evaluations and checkpoint evaluations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from suite.adapters.low_rank import check_patterns, linear_layers
from suite.config.errors import RegradeError, RequestError, SpecError, UnsuitableError
from suite.config.runtime import RuntimeSpec
from suite.engines.choosing import check_heads, check_here
from suite.evaluation.landscape import check_names
from suite.evaluation.retention_matching import HALVINGS, QUARTERS
from suite.models.decoding_settings import unread_settings
from suite.models.lengths import check_lengths
from suite.models.loading import check_loads, read_encoder, read_heads
from suite.models.named_folder import architecture_folder
from suite.models.parameter_names import model_without_weights
from suite.objectives import OBJECTIVES
from suite.optimizers import OPTIMIZERS, Run
from suite.optimizers.base import KINDS
from suite.oracle.base import CurvatureSample, Displacement, Part, Queries, Tensors
from suite.smoothing import SMOOTHINGS
from suite.spec.measure import MeasureSpec
from suite.spec.trial import TrialSpec
from suite.storage.environment import choose_device
from suite.training.anchors import named_checkpoints
from suite.training.refusals import check_refusable
from suite.training.unlearning import requests
from suite.trials.named_model import check_named_model
from suite.trials.task_data import with_extras, within_limit
from tasks.task import Split, Task, Zero

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a trial, in counts.

    Attributes:
        evaluations: evaluations of a checkpoint on all probes of a split; includes those of the anchors, which trials
            share; not those of retention matching.
        matching_least, matching_most: evaluations of weights between the target and the unlearned model. How many are
            attacked depends on how closely the questions tell where utility is at the floor; mostly 0 to 4.
    """

    steps: int
    value_calls: int
    gradient_calls: int
    directional_calls: int
    curvature_calls: int
    evaluations: int
    matching_least: int
    matching_most: int

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def preflight(
    trials: Sequence[TrialSpec],
    measure: MeasureSpec,
    runtime: RuntimeSpec,
    *,
    here: bool = True,
    tell: Callable[[str], None] = lambda note: None,
) -> list[tuple[TrialSpec, Cost]]:
    """Check every trial against its task, data and machine, and count its cost.

    Args:
        here: whether the trials run on this machine; the head of a cluster may have no GPU while its workers have one.
        tell: gets sentences about what is possible, and may be other than expected.

    Raises:
        RequestError, CheckpointError: what cannot work, and what to change. The kind is that of the first such trial.
    """
    try:
        check_names(measure.landscape)
    except SpecError as error:
        raise SpecError(f"measure.{error}") from None
    if here:
        choose_device(runtime)
        check_here(measure, runtime)
    tasks: dict[str, Task] = {}
    checked: set[tuple[Hashable, ...]] = set()
    costs = []
    for spec in trials:
        try:
            task = tasks.get(spec.task) or tasks.setdefault(spec.task, with_extras(spec.task, measure))
            if spec.anchors.retain_limit:
                task = replace(task, retain=task.retain[: spec.anchors.retain_limit])
            _check(spec, task, measure, here, checked, tell)
        except RegradeError as error:
            if len(trials) > 1:
                raise type(error)(f"{error} (in the trial {spec.label})") from None
            raise
        costs.append((spec, cost(spec, task, measure)))
    return costs


def _check(
    spec: TrialSpec,
    task: Task,
    measure: MeasureSpec,
    here: bool,
    checked: set[tuple[Hashable, ...]],
    tell: Callable[[str], None],
) -> None:
    if here:
        OPTIMIZERS[spec.optimizer.name].check_installed()
    _check_anchors(spec, task)
    _check_data(spec, task, measure)
    if here:
        check_named_model(spec)
    if here or spec.model.name == "tiny":
        _check_model(spec, task, measure, checked, tell)


def _check_anchors(spec: TrialSpec, task: Task) -> None:
    """Check that a task with a retrained model is given one: only a task that defines chance as zero may lack it."""
    if spec.anchors.trained:
        return
    _, retrained = named_checkpoints(spec)
    if retrained is None and task.anchored is Zero.RETRAINED and spec.anchors.source != "published":
        raise SpecError(
            f"anchors.retrained: missing. {task.name} is measured against a model that never saw the forget set: name "
            "one, or train both anchors (anchors.epochs, anchors.lr)"
        )


def _check_data(spec: TrialSpec, task: Task, measure: MeasureSpec) -> None:
    """Check that the task's texts suit the batch size, the objective and the attacks."""
    for request in requests(spec, task):
        if not task.block and spec.batch_size > len(request.texts):  # documents are cut into many blocks
            raise UnsuitableError(
                f"batch_size: {spec.batch_size}, but the request {request.name} of {task.name} has only "
                f"{len(request.texts)} texts. Take batch_size={len(request.texts)} or less"
            )
    objective = OBJECTIVES[spec.objective.name]
    if objective.uses_forget_refusals:
        check_refusable(task.forget_examples(), spec.objective.name, task.name)
    if objective.needs_retain_refusals(spec.objective):
        check_refusable(task.retain, spec.objective.name, task.name)
    for split in measure.asked:
        for attack in measure.covered(spec.task, split):
            try:
                attack.check(task, split)
            except RequestError as error:
                raise type(error)(f"measure.{error} ({attack.name})") from None


def _check_model(
    spec: TrialSpec,
    task: Task,
    measure: MeasureSpec,
    checked: set[tuple[Hashable, ...]],
    tell: Callable[[str], None],
) -> None:
    """Check that the engine can run the model, and that every text fits its context.

    Args:
        checked: combinations that passed already, added to here: many trials share a task and a model.
    """
    named = _named_models(spec)
    key, name = next(iter(named.items()))
    _check_patterns(spec, name, key, checked)
    splits = {*measure.asked, *([Split.DEV] if spec.until else [])}
    combination = (spec.task, spec.anchors.retain_limit, spec.model, *named.values(), frozenset(splits))
    if combination in checked:
        return
    task = within_limit(task, measure)
    check_heads(measure, read_heads(spec.model, name, key), "model.tiny.heads" if name == "tiny" else key)
    encoder, context = read_encoder(spec.model, task, name, key)
    probes = [probe for probe in task.probes if probe.split in splits]
    check_lengths(task, encoder, context, probes)
    for one_key, one in named.items():
        check_loads(one, one_key)
    check_attacks(measure, spec.task, model_without_weights(spec.model, name, key), tell)
    if name != "tiny" and (unread := unread_settings(architecture_folder(name, key))):
        tell(unread)
    checked.add(combination)


def check_attacks(
    measure: MeasureSpec, task: str, model: CausalLM, tell: Callable[[str], None] = lambda note: None
) -> None:
    """Check that every attack can be carried out on a model, whose weights may be on the meta device.

    Of a task's set, the others can be carried out all the same, and the rows of those that cannot will say why.

    Raises:
        RequestError: one that was asked for by itself cannot, naming it.
    """
    attacks = {attack.name: attack for split in measure.asked for attack in measure.covered(task, split)}
    for attack in attacks.values():
        try:
            attack.check_model(model)
        except RequestError as error:
            if not isinstance(measure.attacks, str):
                raise type(error)(f"measure.{error} ({attack.name})") from None
            tell(f"measure.{error} ({attack.name} of the set {measure.attacks}). Its rows will have failed")


def _named_models(spec: TrialSpec) -> dict[str, str]:
    """The models that a trial starts from, by the setting that names them; first the one that is unlearned."""
    if spec.anchors.trained:
        return {"model.name": spec.model.name}
    target, retrained = named_checkpoints(spec)
    return {"anchors.target": target, **({"anchors.retrained": retrained} if retrained else {})}


def _check_patterns(spec: TrialSpec, name: str, key: str, checked: set[tuple[Hashable, ...]]) -> None:
    """Check that every pattern of `trainable` and of `adapter.targets` matches something in the model.

    Args:
        checked: combinations that passed already, added to here.
    """
    targets = getattr(spec.adapter, "targets", ())
    combination = (spec.model, name, spec.trainable, targets)
    if combination in checked or (spec.trainable == ("*",) and not targets):
        return
    model = model_without_weights(spec.model, name, key)
    check_patterns("trainable", spec.trainable, [name for name, _ in model.named_parameters()], "parameter")
    if targets:
        linear_layers(model, targets)
    checked.add(combination)


def cost(spec: TrialSpec, task: Task, measure: MeasureSpec) -> Cost:
    """Count what a trial will compute."""
    queries = OPTIMIZERS[spec.optimizer.name].queries(spec.optimizer, spec.steps)
    counts = dict.fromkeys(KINDS, 0)
    for kind, times in queries.items():
        if times:
            for oracle_kind, calls in _oracle_calls(spec, kind).items():
                counts[oracle_kind] += times * calls * len(requests(spec, task))
    points = sum(len(a.points) for split in measure.asked for a in measure.attacks_for(spec.task, split))
    intermediate = (spec.steps - 1) // spec.checkpoints.every if spec.checkpoints.every else 0
    return Cost(
        steps=spec.steps * len(requests(spec, task)),
        value_calls=counts["value"],
        gradient_calls=counts["gradient"],
        directional_calls=counts["directional"],
        curvature_calls=counts["curvature"],
        evaluations=(1 + len(spec.anchors.pairs) * (1 + _has_retrained(spec, task))) * points
        + intermediate * len(measure.asked),
        **_matching(spec, measure),
    )


def _matching(spec: TrialSpec, measure: MeasureSpec) -> dict[str, int]:
    """The cost of retention matching: utility along the way, and every attack on some of these weights."""
    if measure.match is None:
        return {"matching_least": 0, "matching_most": 0}
    points = sum(len(a.points) for split in measure.attacked for a in measure.attacks_for(spec.task, split))
    return {
        "matching_least": len(QUARTERS) * len(measure.attacked),
        "matching_most": (len(QUARTERS) + HALVINGS) * points,
    }


def _has_retrained(spec: TrialSpec, task: Task) -> bool:
    """Whether there is a retrained model to evaluate."""
    return task.anchored is Zero.RETRAINED if spec.anchors.trained else named_checkpoints(spec)[1] is not None


def _oracle_calls(spec: TrialSpec, kind: str) -> dict[str, int]:
    """Oracle calls by kind that the smoothing makes for one call of the optimizer, counted on a two-weight function."""
    bowl = _Bowl()
    smoothed = SMOOTHINGS[spec.smoothing.name](bowl, spec.smoothing, Run(spec.steps, spec.seed))
    direction = [torch.ones(2)]
    match kind:
        case "value":
            smoothed.values(Part.TOTAL, [Displacement.along(direction)])
        case "gradient":
            smoothed.gradient()
        case "directional":
            smoothed.directional(Part.TOTAL, direction)
        case "curvature":
            smoothed.hvp(Part.TOTAL, direction)
    return {of: getattr(bowl.queries, of) for of in KINDS}


class _Bowl:
    """The oracle of f(x) = |x|^2 / 2, which is each part of the loss and also the total."""

    def __init__(self) -> None:
        self.parameters = [torch.tensor([1.0, 2.0])]
        self.queries = Queries()

    def _at(self, at: Displacement | None) -> torch.Tensor:
        return self.parameters[0] + sum(scale * direction[0] for scale, direction in (at.terms if at else ()))

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> torch.Tensor:
        self.queries.value += len(displacements)
        return torch.stack([self._at(at).double().square().sum() / 2 for at in displacements])

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[torch.Tensor]:
        self.queries.gradient += 1
        return [self._at(at)]

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        self.queries.directional += 1
        return float(self._at(at) @ direction[0])

    def curvature_sample(self) -> CurvatureSample:
        self.queries.curvature += 1
        return CurvatureSample([self._at(None)], 1)

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[torch.Tensor]:
        self.queries.curvature += 1
        return [direction[0].clone()]

    def compressed(self, bits: int) -> None: ...

    def stepped(self) -> None: ...
