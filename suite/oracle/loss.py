"""The innermost oracle: a model, an objective and the step's batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from suite.models.likelihood import LanguageModel
from suite.oracle.base import CurvatureSample, Displacement, Diverged, Part, Queries, Tensors, norm
from suite.oracle.batch import Batch
from suite.oracle.displaced import Displacing, displaced
from suite.oracle.replicas import as_thin, can_replicate, replicas
from suite.oracle.seen import Seen
from suite.oracle.state import Stateful

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

REPLICATED = 1 << 26
"""Logits that may be in memory at once when displacements share a forward pass: a quarter of a GiB in fp32."""

IN_CACHE = 512
"""Positions of a batch, over all places, that share a forward pass on a CPU where displacements are not thin: so many
take .65 to .9 of the time that they take one by one, and more take longer, since their activations are fresh memory.
Thin ones share a pass where two places of them fit: so they take .9 of the time, and 1.2 to 1.5 where they do not."""


class Losses(Protocol):
    """The part of an objective that the oracle uses; `suite.objectives.Objective` implements it."""

    @property
    def parts(self) -> Sequence[Part]: ...

    def forget(self, model: LanguageModel, batch: Batch) -> Tensor: ...

    def retain(self, model: LanguageModel, batch: Batch) -> Tensor: ...

    def relearn(self, model: LanguageModel, batch: Batch) -> Tensor: ...

    def tokens(self, part: Part, batch: Batch) -> int: ...

    def resampled(self, model: LanguageModel, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]: ...

    def stepped(self, model: LanguageModel, batch: Batch) -> int: ...


class LossOracle(Stateful):
    """Answers queries by running the model, and counts what that cost.

    A query never moves the weights: the model is pointed at displaced tensors while it runs. So an optimizer steps from
    the same bits, in any dtype, even after an error. Adding a displacement in place and subtracting it again would
    leave about half of all bf16 weights (and 46 % of fp32 ones) changed by rounding.

    Args:
        model: any causal language model of transformers, in eval mode.
        objective: the forget and retain losses.
        seed: seed of the labels that `curvature_sample` draws.
    """

    state = ("_labels", "objective")

    def __init__(self, model: CausalLM, objective: Losses, seed: int = 0) -> None:
        self.model = model
        self.objective = objective
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.batch: Batch | None = None
        self.queries = Queries()
        self.seen = Seen()
        self._displacing = Displacing(model, self.parameters)
        self._displaced_copy: list[Tensor] = []
        self._labels = torch.Generator(device=self.parameters[0].device).manual_seed(seed)

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        with torch.no_grad():
            answers = torch.cat(
                [
                    self._in_one_pass(part, chunk)
                    if can_replicate(self.model, chunk)
                    else self._one_by_one(part, chunk)
                    for chunk in self._chunks(displacements)
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
        module = _LossAsForward(self.model, lambda: self._loss(part))

        def loss(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(module, weights)

        with self._at(at), torch.no_grad(), _plain_attention():
            weights = {key: p.detach() for key, p in zip(keys, self.parameters, strict=True)}
            tangents = {key: d.to(p.dtype) for key, d, p in zip(keys, direction, self.parameters, strict=True)}
            slope = torch.func.jvp(loss, (weights,), (tangents,))[1]
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
            products = torch.autograd.grad(gradient, self.parameters, grad_outputs=list(direction), allow_unused=True)
        product = [torch.zeros_like(w) if p is None else p for p, w in zip(products, self.parameters, strict=True)]
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

    def _one_by_one(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        """The loss at each displacement, one forward pass per displacement."""
        answers = []
        with self._displacing as moved:
            for moved.displacement in displacements:
                answers.append(self._loss(part))
        return torch.stack(answers).cpu()

    def _in_one_pass(self, part: Part, displacements: Sequence[Displacement | None]) -> Tensor:
        """The loss at each displacement, all in one forward pass."""
        with replicas(self.model, self.parameters, displacements) as model:
            answers = []
            for place in range(len(displacements)):
                model.place = place
                answers.append(self._loss(part, model))
        return torch.stack(answers).cpu()

    def _chunks(self, displacements: Sequence[Displacement | None]) -> Iterator[Sequence[Displacement | None]]:
        """The displacements in groups: those of one group fit into memory together in one forward pass."""
        if not can_replicate(self.model, displacements):
            yield displacements
            return
        batch = self._current()
        positions = max(batch.forget.size, batch.retain.size)
        size = max(2, REPLICATED // (positions * self.model.get_output_embeddings().weight.shape[0]))
        if self.parameters[0].device.type == "cpu":
            in_cache = max(1, IN_CACHE // positions)
            size = min(size, in_cache) if as_thin(displacements) is None or in_cache == 1 else size
        yield from (displacements[i : i + size] for i in range(0, len(displacements), size))

    def _loss(self, part: Part, given: LanguageModel | None = None) -> Tensor:
        model = given or self.model
        batch = self._current()
        if part is Part.RELEARN:
            self.queries.tokens += batch.forget.size
            return self.objective.relearn(model, batch)
        total = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        for loss_part in self.objective.parts:
            if part in (loss_part, Part.TOTAL):
                self.queries.tokens += self.objective.tokens(loss_part, batch)
                part_loss = self.objective.forget if loss_part is Part.FORGET else self.objective.retain
                loss = part_loss(model, batch)
                self.seen.loss(loss_part, loss)
                total = total + loss
        return total

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        _finite(float(loss.detach()))
        if not loss.requires_grad:  # e.g. a retain weight of 0
            return [torch.zeros_like(p) for p in self.parameters]
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]
        # One pass in fp32: a norm beyond its range counts as infinite.
        norms = torch.stack(torch._foreach_norm(gradient))
        _finite(float(norms.sum()))
        self.seen.gradient_norm = norms.norm()
        return gradient

    @contextmanager
    def _at(self, displacement: Displacement | None) -> Iterator[None]:
        """Point the model at a displaced copy of its weights, for queries that need a backward pass."""
        if displacement is None:
            yield
            return
        weights = [parameter.data for parameter in self.parameters]
        if not self._displaced_copy:
            self._displaced_copy = [torch.empty_like(weight) for weight in weights]
        _displace_into(self._displaced_copy, weights, displacement)
        try:
            for parameter, moved in zip(self.parameters, self._displaced_copy, strict=True):
                parameter.data = moved
            yield
        finally:
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.data = weight


class _LossAsForward(torch.nn.Module):
    """A module around the model whose forward pass is a loss, so that `functional_call` can evaluate it elsewhere."""

    def __init__(self, model: torch.nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self) -> Tensor:
        return self.loss()


def _displace_into(out: Tensors, weights: Tensors, displacement: Displacement) -> None:
    """Write weights + displacement into `out`: summed in fp32, rounded once to the weights' dtype."""
    for index, (target, weight) in enumerate(zip(out, weights, strict=True)):
        if target.dtype is torch.float32:
            displaced(weight, displacement, index, target)
        else:
            target.copy_(displaced(weight, displacement, index))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise Diverged("the loss or its gradient is not finite")
    return value


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in plain operations, which can be differentiated twice and in forward mode."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
