"""The loss oracle: the interface through which an optimizer evaluates the unlearning objective on one batch.

An optimizer never sees a model. It queries values, gradients or curvature, and the kinds of its queries are its grade.
A smoothing is an oracle that wraps another oracle. No query moves the weights: the innermost oracle points the model at
displaced tensors instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
"""One tensor per trainable parameter, in the order of `Oracle.parameters`."""


class Part(StrEnum):
    """Which loss is evaluated: total = forget + retain."""

    TOTAL = "total"
    FORGET = "forget"
    RETAIN = "retain"
    RELEARN = "relearn"
    """Cross-entropy of the forget answers, whatever the objective: the loss that a relearning attack minimizes."""


class Grade(StrEnum):
    """How much an optimizer asks for, from the most to the least (arXiv 2510.00761); a hybrid uses two kinds."""

    SECOND = "second"
    FIRST = "first"
    COMPRESSED = "compressed"
    ZEROTH = "zeroth"
    HYBRID = "hybrid"


class Order(IntEnum):
    """Order of the derivatives that a query needs."""

    VALUE = 0
    GRADIENT = 1
    CURVATURE = 2


class Diverged(ArithmeticError):
    """A loss or a gradient is not finite. The weights are those of the last finite step. Internal: it becomes
    the status of a trial, or the reason of a diagnostic without a value."""


@dataclass(frozen=True, slots=True)
class Displacement:
    """An offset from the weights: the sum of scale * direction over its terms, in fp32 whatever the weights' dtype."""

    terms: tuple[tuple[float, Tensors], ...]

    @classmethod
    def along(cls, direction: Tensors, scale: float = 1.0) -> Displacement:
        return cls(((scale, direction),))

    def __add__(self, other: Displacement | None) -> Displacement:
        return self if other is None else Displacement(self.terms + other.terms)


@dataclass(slots=True)
class Queries:
    """Counts of queries by kind, tokens passed through the model, and bits per coordinate of the directions."""

    value: int = 0
    gradient: int = 0
    directional: int = 0
    curvature: int = 0
    tokens: int = 0
    bits: set[int] = field(default_factory=set)

    @property
    def orders(self) -> set[Order]:
        counts = {
            Order.VALUE: self.value + self.directional,
            Order.GRADIENT: self.gradient,
            Order.CURVATURE: self.curvature,
        }
        return {order for order, count in counts.items() if count}

    def grade(self) -> Grade:
        """The grade of an optimizer that made these queries.

        Raises:
            ValueError: there was no query.
        """
        match sorted(self.orders):
            case []:
                raise ValueError("there was no query, so there is no grade")
            case [*_, Order.CURVATURE]:
                return Grade.SECOND
            case [Order.VALUE, Order.GRADIENT]:
                return Grade.HYBRID
            case [Order.VALUE]:
                return Grade.ZEROTH
            case _:
                return Grade.COMPRESSED if self.bits and max(self.bits) < 32 else Grade.FIRST

    def as_dict(self) -> dict[str, int]:
        counts = asdict(self)
        counts.pop("bits")
        return counts

    def state_dict(self) -> dict[str, Any]:
        return {**self.as_dict(), "bits": sorted(self.bits)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            setattr(self, name, set(value) if name == "bits" else value)


@dataclass(frozen=True, slots=True)
class CurvatureSample:
    """A gradient with labels resampled from the model, and the number of labels that it is the mean over.

    `count * gradient**2` is an unbiased estimate of the Gauss-Newton matrix's diagonal (Sophia, Alg. 2).
    """

    gradient: list[Tensor]
    count: int


class Oracle(Protocol):
    """Evaluates the objective on the step's batch. Within a step the batch is fixed and dropout is off."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The trainable weights. Only the optimizer moves them, in place; a query leaves every bit of them alone."""
        ...

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        """Loss at each displacement (None: at the weights themselves): float64, shape (len(displacements),)."""
        ...

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        """Gradient of the loss, shaped and typed like the parameters."""
        ...

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        """Forward-mode derivative along a direction: gradient . direction, in the memory of one forward pass."""
        ...

    def curvature_sample(self) -> CurvatureSample:
        """One Gauss-Newton-Bartlett sample of the model's own loss on the batch's tokens."""
        ...

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        """Hessian-vector product by double backward."""
        ...

    def compressed(self, bits: int) -> None:
        """Called by a compressor: this step's direction reaches the weights with so many bits per coordinate."""
        ...

    def stepped(self) -> None:
        """Called by the training loop after the optimizer has moved the weights; the step's batch is still set."""
        ...


class Wrapping:
    """An oracle that passes every query on to the one inside it; a subclass overrides the queries that it changes."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    @property
    def parameters(self) -> Sequence[Tensor]:
        return self.oracle.parameters

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        return self.oracle.values(part, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        return self.oracle.gradient(part, at)

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        return self.oracle.directional(part, direction, at)

    def curvature_sample(self) -> CurvatureSample:
        return self.oracle.curvature_sample()

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        return self.oracle.hvp(part, direction, at)

    def compressed(self, bits: int) -> None:
        self.oracle.compressed(bits)

    def stepped(self) -> None:
        self.oracle.stepped()


class Metered(Wrapping):
    """An oracle that counts the queries to the oracle inside it and passes them on.

    Around the outermost oracle it counts the optimizer's queries, which determine its grade. The innermost oracle
    counts by itself what answering them cost.
    """

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(oracle)
        self.queries = Queries()

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        self.queries.value += len(displacements)
        return super().values(part, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        self.queries.gradient += 1
        return super().gradient(part, at)

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        self.queries.directional += 1
        return super().directional(part, direction, at)

    def curvature_sample(self) -> CurvatureSample:
        self.queries.curvature += 1
        return super().curvature_sample()

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        self.queries.curvature += 1
        return super().hvp(part, direction, at)

    def compressed(self, bits: int) -> None:
        self.queries.bits.add(bits)
        super().compressed(bits)


def norm(tensors: Tensors) -> Tensor:
    """Global L2 norm, a 0-dimensional tensor in float64."""
    return torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]).norm()
