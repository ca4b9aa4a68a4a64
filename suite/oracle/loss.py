"""The innermost oracle: a model, an objective and the step's batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from suite.oracle.base import CurvatureSample, Displacement, Diverged, Part, Queries, Tensors, norm
from suite.oracle.batch import Batch
from suite.oracle.displaced import Displacing, displaced
from suite.oracle.replicas import can_replicate, replicas
from suite.oracle.state import Stateful

REPLICATED = 1 << 26
"""Logits that may be in memory at once when places are asked together: a quarter of a GiB in fp32."""


class Losses(Protocol):
    """What the oracle asks of an objective: `suite.objectives.Objective` answers all of it."""

    parts: Sequence[Part]

    def forget(self, model: Any, batch: Batch) -> Tensor: ...

    def retain(self, model: Any, batch: Batch) -> Tensor: ...

    def relearn(self, model: Any, batch: Batch) -> Tensor: ...

    def tokens(self, part: Part, batch: Batch) -> int: ...

    def resampled(self, model: Any, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]: ...

    def stepped(self, model: Any, batch: Batch) -> int: ...


class LossOracle(Stateful):
    """Answers by running the model, and counts what answering cost.

    The weights never move for a question: the model is pointed at displaced tensors for as long as it runs, so what an
    optimizer steps from is the weights' own bits, in any dtype, after an error too. Adding and subtracting in place
    instead leaves about half of all bf16 weights (and 46 % of fp32 ones) changed by rounding.

    Args:
        model: any causal language model of transformers, in eval mode.
        objective: forget and retain losses.
        seed: of the labels that `curvature_sample` draws.
    """

    state = ("_labels", "objective")

    def __init__(self, model: torch.nn.Module, objective: Losses, seed: int = 0) -> None:
        self.model = model
        self.objective = objective
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.batch: Batch | None = None
        self.queries = Queries()
        self._displacing = Displacing(model, self.parameters)
        self._elsewhere: list[Tensor] = []
        self._labels = torch.Generator(device=self.parameters[0].device).manual_seed(seed)

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        with torch.no_grad():
            answers = torch.cat(
                [
                    self._together(part, some) if can_replicate(self.model, some) else self._apart(part, some)
                    for some in self._chunks(displacements)
                ]
            )
        self.queries.value += len(displacements)
        if not bool(answers.isfinite().all()):
            raise Diverged("the loss is not finite")
        return answers

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        with self._at(at):
            gradient = self._gradient(self._loss(part))
        self.queries.gradient += 1
        return gradient

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        names = {id(parameter): f"model.{name}" for name, parameter in self.model.named_parameters()}
        keys = [names[id(parameter)] for parameter in self.parameters]
        question = _Question(self.model, lambda: self._loss(part))

        def loss(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(question, weights)

        with self._at(at), torch.no_grad(), _plain_attention():
            weights = {key: p.detach() for key, p in zip(keys, self.parameters, strict=True)}
            tangents = {key: d.to(p.dtype) for key, d, p in zip(keys, direction, self.parameters, strict=True)}
            _, slope = torch.func.jvp(loss, (weights,), (tangents,))
        self.queries.directional += 1
        return _finite(float(slope))

    def curvature_sample(self) -> CurvatureSample:
        batch = self._current()
        loss, count = self.objective.resampled(self.model, batch, self._labels)
        self.queries.tokens += sum(map(batch.tokens, self.objective.parts))
        gradient = self._gradient(loss)
        self.queries.curvature += 1
        return CurvatureSample(gradient, count)

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        with self._at(at), _plain_attention():  # the fused kernels have no second derivative
            loss = self._loss(part)
            _finite(float(loss.detach()))
            self.queries.curvature += 1
            if not loss.requires_grad:
                return [torch.zeros_like(p) for p in self.parameters]
            gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
            product = torch.autograd.grad(gradient, self.parameters, grad_outputs=list(direction), allow_unused=True)
        product = [torch.zeros_like(w) if p is None else p for p, w in zip(product, self.parameters, strict=True)]
        _finite(float(norm(product)))
        return product

    def compressed(self, bits: int) -> None:
        self.queries.bits.add(bits)

    def stepped(self) -> None:
        self.queries.tokens += self.objective.stepped(self.model, self._current())

    def _current(self) -> Batch:
        if self.batch is None:
            raise RuntimeError("the oracle has no batch: set `batch` before a step")
        return self.batch

    def _apart(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        """One place after the other."""
        answers = []
        with self._displacing as moved:
            for moved.displacement in displacements:
                answers.append(self._loss(part))
        return torch.stack(answers).cpu()

    def _together(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        """All places in one forward pass."""
        with replicas(self.model, self.parameters, displacements) as model:
            answers = []
            for place in range(len(displacements)):
                model.place = place
                answers.append(self._loss(part, model))
        return torch.stack(answers).cpu()

    def _chunks(self, displacements: Sequence[Displacement | None]) -> Iterator[Sequence[Displacement | None]]:
        """As many places at a time as their activations leave room for, when they are asked together."""
        if not can_replicate(self.model, displacements):
            yield displacements
            return
        batch = self._current()
        positions = max(batch.forget.size, batch.retain.size)
        size = max(2, REPLICATED // (positions * self.model.get_output_embeddings().weight.shape[0]))
        yield from (displacements[i : i + size] for i in range(0, len(displacements), size))

    def _loss(self, part: Part, model: Callable[..., Any] | None = None) -> Tensor:
        model = model or self.model
        batch = self._current()
        if part is Part.RELEARN:
            self.queries.tokens += batch.forget.size
            return self.objective.relearn(model, batch)
        total = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        for one in self.objective.parts:
            if part in (one, Part.TOTAL):
                self.queries.tokens += self.objective.tokens(one, batch)
                ask = self.objective.forget if one is Part.FORGET else self.objective.retain
                total = total + ask(model, batch)
        return total

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        _finite(float(loss.detach()))
        if not loss.requires_grad:  # e.g. a retain weight of 0
            return [torch.zeros_like(p) for p in self.parameters]
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]
        # One reading in fp32: a norm beyond its range is as good as infinite.
        _finite(float(torch.stack(torch._foreach_norm(gradient)).sum()))
        return gradient

    @contextmanager
    def _at(self, displacement: Displacement | None) -> Iterator[None]:
        """Point the model at a displaced copy of its weights, for questions that need a backward pass."""
        if displacement is None:
            yield
            return
        weights = [parameter.data for parameter in self.parameters]
        if not self._elsewhere:
            self._elsewhere = [torch.empty_like(weight) for weight in weights]
        _place(self._elsewhere, weights, displacement)
        try:
            for parameter, place in zip(self.parameters, self._elsewhere, strict=True):
                parameter.data = place
            yield
        finally:
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.data = weight


class _Question(torch.nn.Module):
    """The model with a question about it as its forward pass, so that the question can be asked at other weights."""

    def __init__(self, model: torch.nn.Module, question: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.question = question

    def forward(self) -> Tensor:
        return self.question()


def _place(places: Tensors, weights: Tensors, displacement: Displacement) -> None:
    """Write weights + displacement into `places`: summed in fp32, rounded to the weights' dtype once."""
    for index, (place, weight) in enumerate(zip(places, weights, strict=True)):
        if place.dtype is torch.float32:
            displaced(weight, displacement, index, place)
        else:
            place.copy_(displaced(weight, displacement, index))


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
