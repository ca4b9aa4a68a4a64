"""What a diagnostic is: it computes readings from a checkpoint, the anchors and some texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field

from suite.config.settings import Settings
from suite.evaluation.landscape.surface import Texts
from suite.models.checkpoints import Checkpoint, State
from suite.training.anchors import Anchors
from tasks.scoring import Estimate


class LandscapeSettings(Settings):
    """How many texts, points and directions the diagnostics use.

    Attributes:
        texts: how many of the forget and of the retain texts are read, from the first; the cost grows with them.
        points: points on the line between two models, both ends included.
        probes: random directions of a trace estimate.
        seed: seed of the directions.
    """

    texts: int = Field(64, ge=1)
    points: int = Field(11, ge=3)
    probes: int = Field(8, ge=2)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """One number about a checkpoint.

    Attributes:
        subset: the subset of the texts that it was computed on.
        n: number of texts (barriers) or directions (traces) that the standard error is over. For a distance, which has
            no error, the number of weights.
        direction: which way means more knowledge, as in the board's rows; None where neither does.
        reason: why there is no value.
    """

    metric: str
    subset: str
    value: float | None
    stderr: float | None
    n: int
    direction: str | None = None
    reason: str | None = None

    @classmethod
    def of(cls, metric: str, subset: str, estimate: Estimate) -> Reading:
        return cls(metric, subset, estimate.value, estimate.stderr, estimate.n, reason=estimate.reason)


@dataclass(frozen=True)
class DiagnosticInputs:
    """What a diagnostic may use."""

    checkpoint: Checkpoint
    anchors: Anchors
    texts: Mapping[str, Texts]
    settings: LandscapeSettings
    device: torch.device


class Diagnostic(ABC):
    """One diagnostic, and what its stage depends on besides the checkpoint. Nothing is kept between two of its uses.

    Attributes:
        Settings: `name` alone, a literal: how much is computed say the `LandscapeSettings` that all share.
        source: where it is from.
        reads_texts: whether it reads the forget and the retain texts.
        reads_anchors: whether it reads the anchors' weights.
        settings: names of the `LandscapeSettings` that it reads.
        revision: increased when the same weights and texts give other numbers.
    """

    Settings: type[Settings]
    source: ClassVar[str]
    reads_texts: ClassVar[bool]
    reads_anchors: ClassVar[bool]
    settings: ClassVar[tuple[str, ...]] = ()
    revision: ClassVar[int] = 0

    @abstractmethod
    def compute(self, inputs: DiagnosticInputs) -> tuple[list[Reading], dict[str, Any]]:
        """The readings, and further results to store (JSON)."""


def parameters(checkpoint: Checkpoint) -> State:
    """A checkpoint's weights by name on the CPU; tied weights appear once."""
    return {name: parameter.detach() for name, parameter in checkpoint.model().named_parameters()}
