"""The logit lens: the model's output from the residual stream after some of its blocks.

The final norm and the output layer are applied to the residual stream after the first blocks (nostalgebraist 2020; for
unlearning, Patil et al. 2024, arXiv 2309.17410). Here the later blocks write zeros, so the stream passes through them
unchanged, and the result is an ordinary checkpoint that any engine can run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from suite.attacks.base import Access, Attack, AttackContext, AttackSettings, Subject
from suite.attacks.weights.residual import Writer, block_writers, count_blocks, outline
from suite.config.errors import UnsuitableError
from suite.config.numbers import Whole
from suite.models.checkpoints import EditedCheckpoint, State

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


class LogitLens(Attack["LogitLens.Settings"]):
    """Only the first blocks write into the residual stream; the curve is over the number of these blocks."""

    access = Access.WHITE_BOX
    source = "Patil et al. 2024, arXiv 2309.17410; Lucki et al. 2024, arXiv 2409.18025"
    example: ClassVar[Mapping[str, Any]] = {"layers": [0, 1]}

    class Settings(AttackSettings):
        """layers: increasing numbers of blocks kept; 0 keeps only the embeddings, and all blocks the whole model."""

        name: Literal["logit_lens"] = "logit_lens"
        layers: tuple[Whole, ...] = Field(min_length=1)

        @field_validator("layers")
        @classmethod
        def _rising(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
            if layers[0] < 0 or any(b <= a for a, b in pairwise(layers)):
                raise ValueError(f"{list(layers)}: numbers of blocks from 0, rising, such as [8, 16, 24]")
            return layers

    @property
    def points(self) -> tuple[int, ...]:
        return self.settings.layers

    def check_model(self, model: CausalLM) -> None:
        self._writers(model)

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        blocks, writers = self._writers(outline(subject.checkpoint.architecture))
        for count in self.points:
            if count == blocks:
                yield count, subject
                continue
            edit = partial(silenced, writers=[w for w in writers if w.block is not None and w.block >= count])
            checkpoint = EditedCheckpoint(subject.checkpoint, edit, f"logit_lens[{count}]")
            yield count, Subject(checkpoint, subject.probes)

    def _writers(self, model: CausalLM) -> tuple[int, tuple[Writer, ...]]:
        """The number of the model's blocks, and the matrices with which they write."""
        blocks = count_blocks(model)
        if self.points[-1] > blocks:
            raise UnsuitableError(
                f"attacks: logit_lens: layers={list(self.points)}, but the model has {blocks} blocks. Use 0 to {blocks}"
            )
        return blocks, tuple(block_writers(model))


def silenced(state: State, writers: list[Writer]) -> State:
    """The weights with these writers and their biases set to zero."""
    zeroed = {name for writer in writers for name in (*writer.names, writer.bias)}
    return {name: torch.zeros_like(tensor) if name in zeroed else tensor for name, tensor in state.items()}
