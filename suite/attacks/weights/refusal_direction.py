"""Ablation of a refusal direction, for models that suppress answers instead of forgetting them.

Refusals are mediated by one direction of the residual stream: the difference between a model's mean activations on the
questions that it refuses and on others (Arditi et al. 2024, arXiv 2406.11717). The same ablation brought back what
several unlearning methods were thought to have removed (Lucki et al. 2024, arXiv 2409.18025).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject, WeightEdit
from suite.attacks.weights.residual import Writer, block_writers, count_blocks, embedding_writers, without
from suite.config.errors import UnsuitableError
from suite.config.numbers import Count, Seed, Whole
from suite.models.checkpoints import State, TensorCheckpoint
from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import hidden_states
from tasks.task import Item, Probe, Split, Task

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


class RefusalDirection(WeightEdit["RefusalDirection.Settings"]):
    """No matrix writes along the direction that separates forget questions from retain questions after a block.

    The direction comes from the questions of the other split's headline probes: the attacker reads no answers, and the
    direction is not computed on the questions that are measured. An output layer that is tied to the embeddings changes
    with them.
    """

    source = "Arditi et al. 2024, arXiv 2406.11717; Lucki et al. 2024, arXiv 2409.18025"
    example: ClassVar[Mapping[str, Any]] = {"layer": 0, "samples": 2}

    class Settings(AttackSettings):
        """layer: the block after which the direction is computed, from 0. samples: questions drawn of either side.

        strength: share of the component that is removed. seed: of the draw.
        """

        name: Literal["refusal_direction"] = "refusal_direction"
        layer: Whole
        samples: Count
        strength: float = Field(1.0, ge=0, le=1)
        seed: Seed = 0

    @property
    def changes_nothing(self) -> bool:
        return not self.settings.strength

    def check(self, task: Task, split: Split) -> None:
        for side, items in zip(("forget", "retain"), contrasted(task, split), strict=True):
            if len(items) < self.settings.samples:
                raise UnsuitableError(
                    f"attacks: samples={self.settings.samples}: {task.name} has only {len(items)} {side} questions "
                    f"besides those of {split}"
                )

    def check_model(self, model: CausalLM) -> None:
        if not self.changes_nothing:
            self._writers(model)

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        task = context.task
        others = task.probes_behind((*task.knowledge, *task.utility), _other(probes[0].split))
        return {"questions": {probe.name: probe.digest for probe in others}}

    @torch.no_grad()
    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        self.check(context.task, subject.split)
        s = self.settings
        model = TensorCheckpoint(state, subject.checkpoint.architecture).model(context.device)
        writers = self._writers(model)
        rng = random.Random(f"{context.seed}:{s.seed}")
        forget, retain = (
            [context.encoder.prompt(item) for item in rng.sample(items, s.samples)]
            for items in contrasted(context.task, subject.split)
        )
        direction = mean_state(model, forget, s.layer) - mean_state(model, retain, s.layer)
        if not direction.norm():
            raise UnsuitableError(f"attacks: layer={s.layer}: forget and retain questions look the same there")
        after = dict(state)
        for writer in writers:
            along = direction
            if writer.norm:
                along = gain(model.get_submodule(writer.norm), direction) * direction
            unit = (along / along.norm()).float().cpu()
            for name in state.keys() & set(writer.names):
                after[name] = without(state[name], writer.axis, unit, s.strength)
            if writer.bias:
                after[writer.bias] = without(state[writer.bias], -1, unit, s.strength)
        return after

    def _writers(self, model: CausalLM) -> list[Writer]:
        """The matrices that write into the residual stream."""
        layer, blocks = self.settings.layer, count_blocks(model)
        if layer >= blocks:
            raise UnsuitableError(f"attacks: layer={layer}: the model has {blocks} blocks. Use 0 to {blocks - 1}")
        return [*embedding_writers(model), *block_writers(model)]


def contrasted(task: Task, split: Split) -> tuple[list[Item], list[Item]]:
    """Forget and retain questions of the other split's headline probes, each once, of the styles that both sides have.

    Otherwise the direction might separate running text from questions.
    """
    sides = [
        _distinct_items(task.probes_behind(headlines, _other(split))) for headlines in (task.knowledge, task.utility)
    ]
    styles = {item.style for item in sides[0]} & {item.style for item in sides[1]}
    forget, retain = ([item for item in side if item.style in styles] for side in sides)
    return forget, retain


def mean_state(model: CausalLM, prompts: Iterable[Sequence[int]], layer: int) -> Tensor:
    """Mean of the residual stream after block `layer`, from 0, at the last token: (hidden units,), float64."""
    device = next(model.parameters()).device
    states = [
        hidden_states(model, Tokens.collate([Encoded(tuple(prompt), len(prompt))], device), layer)[0, -1].double()
        for prompt in prompts
    ]
    return torch.stack(states).mean(0)


def gain(norm: torch.nn.Module, like: Tensor) -> Tensor:
    """The factor of each unit in an RMS norm, up to a factor common to all units: (hidden units,), cast like `like`.

    It is the norm of a vector of ones, whose root mean square is one, because some norms scale by their weight and
    others by one plus their weight.
    """
    weight = next(norm.parameters())
    return norm(torch.ones_like(weight)).to(like)


def _distinct_items(probes: Iterable[Probe]) -> list[Item]:
    return list({item.prompt: item for probe in probes for item in probe.items}.values())


def _other(split: Split) -> Split:
    return next(other for other in Split if other is not split)
