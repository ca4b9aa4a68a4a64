"""The spec of a null trial: the target plus a random change of its weights, which stands for no method.

A zeroth-order optimizer walks at random in part, and a random walk forgets too. So a table shows what a random change
of the same size would score. Like a trial it is a frozen value with a canonical form, whose SHA-256 is its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from leaderboard.board.schema import RANDOM_CHANGE
from suite.config.numbers import Seed
from suite.config.settings import parse
from suite.models.settings import ModelSpec
from suite.spec.trial import AnchorSpec, Identified, TrialSpec, trial


class RandomChange(Identified):
    """One null trial.

    Attributes:
        task, model, anchors: as of the trials beside it.
        random_change: L2 norm of the change.
        trainable: patterns of the parameters that are changed, those that the trials beside it could change.
        seed: of the direction.
    """

    task: str
    model: ModelSpec = ModelSpec()
    anchors: AnchorSpec
    random_change: float = Field(gt=0)
    trainable: tuple[str, ...] = Field(("*",), min_length=1)
    seed: Seed = 0

    @property
    def label(self) -> str:
        """A short label for progress, tables and messages."""
        return f"random change of norm {self.random_change:g} · seed {self.seed}"


AnyTrial = TrialSpec | RandomChange
"""What a runner runs."""


def any_trial(data: Mapping[str, Any]) -> AnyTrial:
    """The trial or null trial of a canonical form.

    Raises:
        SpecError: it is neither.
    """
    return parse(RandomChange, data) if RANDOM_CHANGE in data else trial(data)
