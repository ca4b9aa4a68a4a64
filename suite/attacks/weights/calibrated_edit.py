"""The base of attacks that quantize or prune with calibration texts: their settings, and the edit of a checkpoint."""

from __future__ import annotations

import random
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject
from suite.attacks.texts import Source, Texts, at_least, draw_texts
from suite.attacks.weights.calibration import edit_blocks
from suite.attacks.weights.layer_inputs import Inputs
from suite.attacks.weights.matrix_edit import MatrixEdit
from suite.config.errors import UnsuitableError
from suite.config.numbers import Count, Seed
from suite.models.checkpoints import State, context_of, dtype_of, load_state, skeleton
from suite.models.outline import Outline
from tasks.task import Example, Probe, Split, Task, examples_digest


class CalibratedSettings(AttackSettings):
    """texts: source of the calibration texts: `retain`, `forget`, `unasked`, `wikitext`, or a task's retain texts.

    samples: number of texts. seed: of their draw.
    """

    texts: Source = Texts.RETAIN
    samples: Count = 128
    seed: Seed = 0


C = TypeVar("C", bound=CalibratedSettings)


class CalibratedEdit(MatrixEdit[C]):
    """A weight edit of the linear layers in a model's blocks that depends on the inputs of these layers."""

    gram: ClassVar[bool] = True
    """Whether the edit needs the inputs' Gram matrix, which costs as much as a layer of as many outputs."""

    def edit(self, weight: Tensor, inputs: Inputs) -> Tensor:
        """The edited weight of a layer: (outputs, inputs) in fp32."""
        raise NotImplementedError

    def check(self, task: Task, split: Split) -> None:
        at_least(self.settings.samples, self.settings.texts, task, split)

    def reached(self, outline: Outline) -> float:
        if outline.share_in_blocks is None:
            raise UnsuitableError(
                f"attacks: {self.settings.name}: {outline.kind} has no list of blocks with linear layers to calibrate. "
                "Use rtn, nf4 or noise"
            )
        return outline.share_in_blocks

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        return {
            "calibration": examples_digest(self._calibration(context, probes[0].split)),
            "block": context.block,
        }

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        matrices = self.matrices(subject.checkpoint.architecture)
        encoded = context.encoder.examples(self._calibration(context, subject.split), context.block)
        model = skeleton(subject.checkpoint.architecture, torch.float32)
        load_state(model, state)
        limit = context_of(subject.checkpoint.architecture)
        stored = dtype_of(state)
        edit_blocks(
            model.to(context.device),
            [text.ids[:limit] for text in encoded],
            # Rounded to the stored dtype at once: the inputs of later blocks must come from the weights as stored.
            lambda weight, inputs: self.edit(weight, inputs).to(stored).float(),
            gram=self.gram,
        )
        after = model.state_dict()
        # A tied tensor may be listed under another of its names than the edited one.
        return {name: after[name].to(weight) if name in matrices else weight for name, weight in state.items()}

    def _calibration(self, context: AttackContext, split: Split) -> list[Example]:
        s = self.settings
        return draw_texts(s.texts, s.samples, context.task, split, random.Random(f"{context.seed}:{s.seed}"))
