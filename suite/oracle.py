"""The loss oracle: the unlearning objective on one batch, as something that answers questions.

An optimizer never sees a model. It asks for values, gradients or curvature, and what it asks is its grade. A smoothing
is an oracle around an oracle. The innermost oracle moves the weights for a question and gives them back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from suite.objectives import Objective
    from suite.text import Batch

Tensors = Sequence[Tensor]
"""One tensor per trainable parameter, in the order of `Oracle.parameters`."""


class Part(StrEnum):
    """Which loss is asked: total = forget + retain."""

    TOTAL = "total"
    FORGET = "forget"
    RETAIN = "retain"


class Grade(StrEnum):
    """What an optimizer asks for, from the most to the least (arXiv 2510.00761)."""

    SECOND = "second"
    FIRST = "first"
    COMPRESSED = "compressed"
    ZEROTH = "zeroth"
    HYBRID = "hybrid"


class Order(IntEnum):
    """Order of the derivatives that a question needs."""

    VALUE = 0
    GRADIENT = 1
    CURVATURE = 2


class Diverged(ArithmeticError):
    """A loss or a gradient is not finite. The weights are those of the last finite step."""


@dataclass(frozen=True, slots=True)
class Displacement:
    """A place near the weights: the sum of scale * direction over its terms, in fp32 whatever the weights' dtype."""

    terms: tuple[tuple[float, Tensors], ...]

    @classmethod
    def along(cls, direction: Tensors, scale: float = 1.0) -> Displacement:
        return cls(((scale, direction),))

    def __add__(self, other: Displacement | None) -> Displacement:
        return self if other is None else Displacement(self.terms + other.terms)


@dataclass(slots=True)
class Queries:
    """A meter's reading: questions by kind, tokens passed through the model, bits per coordinate of the directions."""

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
        """The grade of an optimizer that asked these questions.

        Raises:
            ValueError: nothing was asked.
        """
        match sorted(self.orders):
            case []:
                raise ValueError("nothing was asked, so there is no grade")
            case [*_, Order.CURVATURE]:
                return Grade.SECOND
            case [Order.VALUE, Order.GRADIENT]:
                return Grade.HYBRID
            case [Order.VALUE]:
                return Grade.ZEROTH
            case _:
                return Grade.COMPRESSED if self.bits and max(self.bits) < 32 else Grade.FIRST

    def as_dict(self) -> dict[str, int]:
        reading = asdict(self)
        reading.pop("bits")
        return reading


@dataclass(frozen=True, slots=True)
class CurvatureSample:
    """A gradient with labels resampled from the model, and the number of labels that it is the mean over.

    `count * gradient**2` is an unbiased estimate of the Gauss-Newton matrix's diagonal (Sophia, Alg. 2).
    """

    gradient: list[Tensor]
    count: int


class Oracle(Protocol):
    """Answers about the objective on the step's batch. Within a step the batch is fixed and dropout is off."""

    parameters: Sequence[Tensor]
    """The trainable weights. Only the optimizer moves them, in place; an oracle gives them back bit for bit."""

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        """Loss at each displaced place (None: where the weights stand): float64, shape (len(displacements),)."""
        ...

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        """Gradient of the loss, shaped and typed like the parameters."""
        ...

    def directional(self, part: Part, direction: Tensors) -> float:
        """Forward-mode derivative along a direction: gradient . direction, in the memory of one forward pass."""
        ...

    def curvature_sample(self) -> CurvatureSample:
        """One Gauss-Newton-Bartlett sample of the model's own loss on the batch's tokens."""
        ...

    def hvp(self, part: Part, direction: Tensors) -> list[Tensor]:
        """Hessian-vector product by double backward."""
        ...

    def compressed(self, bits: int) -> None:
        """Told by a compressor: this step's direction reaches the weights with so many bits a coordinate."""
        ...


class LossOracle:
    """The innermost oracle: a model, an objective and the step's batch.

    Args:
        model: any causal language model of transformers, in eval mode.
        objective: forget and retain losses.
        seed: of the labels that `curvature_sample` draws.
    """

    def __init__(self, model: torch.nn.Module, objective: Objective, seed: int = 0) -> None:
        self.model = model
        self.objective = objective
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.batch: Batch | None = None
        self.queries = Queries()
        self._kept: list[Tensor] = []
        self._labels = torch.Generator(device=self.parameters[0].device).manual_seed(seed)

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        answers = torch.empty(len(displacements), dtype=torch.float64)
        with torch.no_grad(), self._moving() as move:
            for index, displacement in enumerate(displacements):
                move(displacement)
                answers[index] = self._loss(part)
        self.queries.value += len(displacements)
        if not bool(answers.isfinite().all()):
            raise Diverged("the loss is not finite")
        return answers

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        with self._moving() as move:
            move(at)
            gradient = self._gradient(self._loss(part))
        self.queries.gradient += 1
        return gradient

    def directional(self, part: Part, direction: Tensors) -> float:
        names = {id(parameter): f"model.{name}" for name, parameter in self.model.named_parameters()}
        keys = [names[id(parameter)] for parameter in self.parameters]
        question = _Question(self.model, lambda: self._loss(part))

        def loss(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(question, weights)

        at = dict(zip(keys, (p.detach() for p in self.parameters), strict=True))
        with torch.no_grad(), _plain_attention():
            _, tangent = torch.func.jvp(loss, (at,), (dict(zip(keys, direction, strict=True)),))
        self.queries.directional += 1
        return _finite(float(tangent))

    def curvature_sample(self) -> CurvatureSample:
        batch = self._current()
        loss, count = self.objective.resampled(self.model, batch, self._labels)
        self.queries.tokens += sum(map(batch.tokens, self.objective.parts))
        gradient = self._gradient(loss)
        self.queries.curvature += 1
        return CurvatureSample(gradient, count)

    def hvp(self, part: Part, direction: Tensors) -> list[Tensor]:
        with _plain_attention():  # the fused kernels have no second derivative
            gradient = torch.autograd.grad(self._loss(part), self.parameters, create_graph=True)
            product = torch.autograd.grad(gradient, self.parameters, grad_outputs=list(direction))
        self.queries.curvature += 1
        return [p.detach() for p in product]

    def compressed(self, bits: int) -> None:
        self.queries.bits.add(bits)

    def _current(self) -> Batch:
        if self.batch is None:
            raise RuntimeError("the oracle has no batch: set `batch` before a step")
        return self.batch

    def _loss(self, part: Part) -> Tensor:
        batch = self._current()
        total = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        for one in self.objective.parts:
            if part in (one, Part.TOTAL):
                self.queries.tokens += batch.tokens(one)
                ask = self.objective.forget if one is Part.FORGET else self.objective.retain
                total = total + ask(self.model, batch)
        return total

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        _finite(float(loss.detach()))
        if not loss.requires_grad:  # e.g. a retain weight of 0
            return [torch.zeros_like(p) for p in self.parameters]
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]
        _finite(float(norm(gradient)))
        return gradient

    @contextmanager
    def _moving(self) -> Iterator:
        """A function that puts the weights at a displacement; on leaving, the weights are what they were, bit for bit.

        Restored from a copy: adding and subtracting in place leaves about half of all bf16 weights (and 46 % of fp32
        ones) changed by rounding. The sum is taken in fp32 and rounded to the weights' dtype once.
        """
        weights = [parameter.detach() for parameter in self.parameters]
        moved = False

        def move(displacement: Displacement | None) -> None:
            nonlocal moved
            if displacement is None:
                if moved:
                    torch._foreach_copy_(weights, self._kept)
                return
            if not moved:
                self._keep(weights)
            moved = True
            _place(weights, self._kept, displacement)

        try:
            yield move
        finally:
            if moved:
                torch._foreach_copy_(weights, self._kept)

    def _keep(self, weights: list[Tensor]) -> None:
        """Copy the weights. The copy's memory stays: a fresh one costs more in page faults than in copying."""
        if not self._kept:
            self._kept = [torch.empty_like(weight) for weight in weights]
        torch._foreach_copy_(self._kept, weights)


class Metered:
    """An oracle with a meter before it: counts what is asked and passes it on.

    Around the outermost oracle it counts what the optimizer asked, which is its grade. The innermost oracle counts by
    itself what answering cost.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.queries = Queries()

    @property
    def parameters(self) -> Sequence[Tensor]:
        return self.oracle.parameters

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        self.queries.value += len(displacements)
        return self.oracle.values(part, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        self.queries.gradient += 1
        return self.oracle.gradient(part, at)

    def directional(self, part: Part, direction: Tensors) -> float:
        self.queries.directional += 1
        return self.oracle.directional(part, direction)

    def curvature_sample(self) -> CurvatureSample:
        self.queries.curvature += 1
        return self.oracle.curvature_sample()

    def hvp(self, part: Part, direction: Tensors) -> list[Tensor]:
        self.queries.curvature += 1
        return self.oracle.hvp(part, direction)

    def compressed(self, bits: int) -> None:
        self.queries.bits.add(bits)
        self.oracle.compressed(bits)


class _Question(torch.nn.Module):
    """The model with a question about it as its forward pass, so that the question can be asked at other weights."""

    def __init__(self, model: torch.nn.Module, question: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.question = question

    def forward(self) -> Tensor:
        return self.question()


def norm(tensors: Tensors) -> Tensor:
    """Global L2 norm, a 0-dimensional tensor in float64."""
    return torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]).norm()


def _place(weights: Tensors, kept: Tensors, displacement: Displacement) -> None:
    (scale, direction), *rest = displacement.terms
    if not rest and kept[0].dtype is torch.float32:
        for weight, origin, way in zip(weights, kept, direction, strict=True):
            torch.add(origin, way, alpha=scale, out=weight)
        return
    for index, (weight, origin) in enumerate(zip(weights, kept, strict=True)):
        place = origin.float()
        for scale, direction in displacement.terms:
            place = place.add(direction[index], alpha=scale)
        weight.copy_(place)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise Diverged("the loss or its gradient is not finite")
    return value


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention written out in plain operations, which can be differentiated twice and forwards."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
