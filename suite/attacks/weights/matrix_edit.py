"""The base of attacks that edit the weights of linear layers: which matrices these are, and the edit of each.

A mixture of experts keeps the matrices of all experts in one tensor, and GPT-2 keeps its own transposed. They are
edited as a deployed quantizer would see them: expert by expert, along the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject, WeightEdit
from suite.config.errors import UnsuitableError
from suite.models.checkpoints import State
from suite.models.layers import Stored
from suite.models.outline import Outline, model_outline, outline_of

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

ENOUGH = 0.9
"""Share of the numbers in a model's matrices that an attack has to reach: else what it spares would look robust."""

Place = tuple[int, ...]
"""Where a matrix is: the number of its tensor among all that are edited, by name, and the expert's."""


S = TypeVar("S", bound=AttackSettings)


class MatrixEdit(WeightEdit[S]):
    """An edit of the weights of linear layers inside the network (see `suite.models.layers.is_linear`)."""

    def version_for(self, architecture: Path) -> int:
        return self.version + (not outline_of(architecture).as_before)

    def check_model(self, model: CausalLM) -> None:
        if not self.changes_nothing:
            self._check(model_outline(model))

    def matrices(self, architecture: Path) -> Mapping[str, Stored]:
        """How the weights that are edited are stored, by name.

        Raises:
            UnsuitableError: too few of the model's weights are stored in a known way.
        """
        outline = outline_of(architecture)
        self._check(outline)
        return outline.matrices

    def reached(self, outline: Outline) -> float:
        """Share of the numbers that are edited, in all matrices that the edit is meant for.

        Raises:
            UnsuitableError: there are no such matrices.
        """
        return outline.share

    def _check(self, outline: Outline) -> None:
        share = self.reached(outline)
        if share < ENOUGH:
            unknown = f" (such as {outline.unknown[0]})" if outline.unknown else ""
            raise UnsuitableError(
                f"attacks: {self.settings.name} would change {share:.0%} of the weights in the matrices of "
                f"{outline.kind}: how the others{unknown} are stored is not known here. Leave the attack out"
            )

    def each(
        self, state: State, subject: Subject, context: AttackContext, edit: Callable[[Tensor, Place], Tensor]
    ) -> State:
        """The state with every matrix edited on its own.

        Args:
            edit: gets a matrix, (outputs, inputs), on the context's device, and returns the edited matrix.
        """
        stored = self.matrices(subject.checkpoint.architecture)
        after = dict(state)
        for number, name in enumerate(sorted(state.keys() & stored.keys())):

            def at(matrix: Tensor, expert: int, name: str = name, number: int = number) -> Tensor:
                return edit(matrix, (number,) if stored[name].experts is None else (number, expert))

            weight = state[name]
            after[name] = stored[name].edited(weight.to(context.device), at).to(weight.device)
        return after
