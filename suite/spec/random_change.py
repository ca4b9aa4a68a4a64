"""The spec of a null trial: the target plus a random change of its weights, which stands for no method.

A zeroth-order optimizer walks at random in part, and a random walk forgets too. So a table shows what a random change
of the same size would score. Like a trial it is a frozen value with a canonical form, whose SHA-256 is its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import Field

from leaderboard.board.schema import RANDOM_CHANGE
from suite.config.canonical import digest
from suite.config.numbers import Seed
from suite.config.settings import Settings, parse
from suite.models.settings import ModelSpec
from suite.spec.trial import AnchorSpec, TrialSpec, trial


class RandomChange(Settings):
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

    @cached_property
    def canonical(self) -> dict[str, Any]:
        """The settings that are not at their default."""
        plain = self.changed()
        if self.anchors.target:  # as of a trial
            plain["model"] = self.model.changed()
        return plain

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest(self.canonical)

    @cached_property
    def entry(self) -> str:
        """Digest of the null trial without its seed: one null entry of the board."""
        return digest({key: value for key, value in self.canonical.items() if key != "seed"})

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
