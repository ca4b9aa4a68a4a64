"""Many low-rank displacements of one model in one forward pass, which reads the weights once for all of them.

A matrix displaced by s A B' gives x (W + s A B')' = x W' + s (x B) A'. So a batch that holds each text once per
displacement ("place") goes through W as one, and through the thin factors of each displacement separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from suite.models.encoding import Tokens
from suite.models.likelihood import hidden_states
from suite.oracle.base import Displacement
from suite.oracle.directions import LowRank
from suite.oracle.displaced import reads_rows


def can_replicate(model: nn.Module, displacements: Sequence[Displacement | None]) -> bool:
    """Whether every displacement is one low-rank direction, and every trainable matrix belongs to a linear layer or to
    the plain token embedding. (Positions are embedded once for all texts, so that output has no rows per place.)"""
    moved = [d for d in displacements if d is not None]
    if len(displacements) < 2 or not moved:
        return False
    if not all(len(d.terms) == 1 and isinstance(d.terms[0][1], LowRank) for d in moved):
        return False
    return all(
        isinstance(module, nn.Linear) or (reads_rows(module) and module is model.get_input_embeddings())
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and parameter.dim() > 1
    )


class Replicas:
    """Stands for the model at one of several displacements; `place` is the index of that displacement.

    The first call on some texts runs the model on one copy of them per displacement; the outputs for the other
    displacements are stored until they are needed.
    """

    def __init__(self, model: nn.Module, places: int) -> None:
        self.replicated = model
        self.place = 0
        self._places = places
        # The values hold the texts too: an id is unique only while its object lives.
        self._outputs: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, *, input_ids: Tensor, **options: Any) -> SimpleNamespace:
        def logits(ids: Tensor) -> Tensor:
            return self.replicated(input_ids=ids, **options).logits

        return SimpleNamespace(logits=self._at_place(logits, input_ids, *sorted(options.items())))

    def hidden_states(self, tokens: Tokens, layer: int) -> Tensor:
        """`likelihood.hidden_states` of the model at this place."""

        def states(ids: Tensor) -> Tensor:
            return hidden_states(self.replicated, replace(tokens, ids=ids), layer)

        return self._at_place(states, tokens.ids, layer)

    def _at_place(self, compute: Callable[[Tensor], Tensor], ids: Tensor, *key: Any) -> Tensor:
        if (id(ids), *key) not in self._outputs:
            self._outputs[id(ids), *key] = ids, compute(ids.repeat(self._places, 1))
        _, output = self._outputs[id(ids), *key]
        return output[self.place * len(ids) : (self.place + 1) * len(ids)]


@contextmanager
def replicas(
    model: nn.Module, parameters: Sequence[Tensor], displacements: Sequence[Displacement | None]
) -> Iterator[Replicas]:
    """The model at all displacements at once. Requires `can_replicate`."""
    terms = [None if d is None else d.terms[0] for d in displacements]
    moved: LowRank = next(term[1] for term in terms if term is not None)  # type: ignore[assignment]
    scales = torch.tensor([0.0 if t is None else t[0] for t in terms], device=parameters[0].device)
    directions: list[LowRank] = [moved if t is None else t[1] for t in terms]  # type: ignore[misc]
    index = {id(p): i for i, p in enumerate(parameters)}
    handles = []
    for module in model.modules():
        own = {n: index[id(p)] for n, p in module.named_parameters(recurse=False) if id(p) in index}
        if not own:
            continue
        stacked = {name: _stack(directions, i, scales, parameters[i].dtype) for name, i in own.items()}
        kind = _Embedding if isinstance(module, nn.Embedding) else _Linear if isinstance(module, nn.Linear) else _Other
        handles.append(module.register_forward_hook(kind(stacked, len(displacements))))
    try:
        yield Replicas(model, len(displacements))
    finally:
        for handle in handles:
            handle.remove()


Stacked = Tensor | tuple[Tensor, Tensor]


def _stack(directions: Sequence[LowRank], index: int, scales: Tensor, dtype: torch.dtype) -> Stacked:
    """Stacked over places: (scale * A, B), each (places, size, k), or the dense displacement (places, *shape)."""
    factors = [d.factors[index] for d in directions]
    if isinstance(factors[0], Tensor):
        stacked = torch.stack(factors)  # type: ignore[arg-type]
        return (stacked * scales.view(-1, *[1] * (stacked.dim() - 1))).to(dtype)
    left = torch.stack([f[0] for f in factors]) * scales.view(-1, 1, 1)
    return left.to(dtype), torch.stack([f[1] for f in factors]).to(dtype)


class _Hook:
    """A forward hook that turns a layer's output into that of its displaced weights, for each place."""

    def __init__(self, stacked: dict[str, Stacked], places: int) -> None:
        self.stacked = stacked
        self.places = places


class _Linear(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        displaced_output = output.view(self.places, -1, output.shape[-1])
        if "weight" in self.stacked:
            left, right = self.stacked["weight"]
            thin = torch.bmm(args[0].reshape(self.places, -1, args[0].shape[-1]), right)
            displaced_output = displaced_output.baddbmm_(thin, left.transpose(1, 2))
        if "bias" in self.stacked:
            displaced_output = displaced_output.add_(self.stacked["bias"].unsqueeze(1))
        return displaced_output.view(output.shape)


class _Embedding(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        left, right = self.stacked["weight"]
        ids = args[0].reshape(self.places, -1)
        rows = left[torch.arange(self.places, device=ids.device).unsqueeze(1), ids]
        return output.view(self.places, -1, output.shape[-1]).baddbmm_(rows, right.transpose(1, 2)).view(output.shape)


class _Other(_Hook):
    """For layers that have only vectors, such as norms: runs the layer vectorized over places."""

    def __init__(self, stacked: dict[str, Stacked], places: int) -> None:
        super().__init__(stacked, places)
        self.running = False

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.running:
            return None
        weights = dict(module.named_parameters(recurse=False))
        displaced_weights = {name: weights[name].detach() + move for name, move in self.stacked.items()}
        per_place = [a.view(self.places, -1, *a.shape[1:]) for a in args]

        def run(weights: dict[str, Tensor], *args: Tensor) -> Tensor:
            return torch.func.functional_call(module, weights, args)

        self.running = True
        try:
            return torch.vmap(run)(displaced_weights, *per_place).view(output.shape)
        finally:
            self.running = False
