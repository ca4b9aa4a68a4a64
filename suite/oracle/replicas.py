"""Many displacements of one model in one forward pass, which reads the weights once for all of them.

A matrix displaced by s A B' gives x (W + s A B')' = x W' + s (x B) A'. So a batch that holds each text once per
displacement ("place") goes through W as one, and through the thin factors of each displacement separately. Where few
parameters are trained, such as those of an adapter, a displacement U need not be thin: x W' + s x U'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from suite.models.encoding import Tokens
from suite.models.likelihood import hidden_states
from suite.oracle.base import Displacement
from suite.oracle.directions import Factored
from suite.oracle.displaced import reads_rows

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

FEW = 8
"""Displacements that are not thin share a pass where the model has this many times as many parameters as they move."""
HELD = 1 << 23
"""Numbers that such displacements may take in memory, over all places: 32 MB."""


def can_replicate(model: CausalLM, displacements: Sequence[Displacement | None]) -> bool:
    """Whether every displacement is one low-rank direction, or few parameters are trained; and every trainable matrix
    belongs to a linear layer or to the plain token embedding. (Positions are embedded once for all texts, so that
    output has no rows per place.)"""
    moved = [d for d in displacements if d is not None]
    if len(displacements) < 2 or not moved:
        return False
    if as_thin(displacements) is None and not _are_few(model, len(displacements)):
        return False
    return all(
        isinstance(module, nn.Linear) or (reads_rows(module) and module is model.get_input_embeddings())
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and parameter.dim() > 1
    )


def as_thin(displacements: Sequence[Displacement | None]) -> list[tuple[float, Factored] | None] | None:
    """Each displacement as one low-rank direction and its scale; None where one of them is another kind."""
    thin: list[tuple[float, Factored] | None] = []
    for displacement in displacements:
        terms = displacement.terms if displacement else ()
        factored = [(scale, direction) for scale, direction in terms if isinstance(direction, Factored)]
        if displacement is not None and not len(terms) == len(factored) == 1:
            return None
        thin.append(factored[0] if factored else None)
    return thin


def _are_few(model: nn.Module, places: int) -> bool:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return places * trained <= HELD and FEW * trained <= sum(p.numel() for p in model.parameters())


class Replicas:
    """Stands for the model at one of several displacements; `place` is the index of that displacement.

    The first call on some texts runs the model on one copy of them per displacement; the outputs for the other
    displacements are stored until they are needed.
    """

    def __init__(self, model: CausalLM, places: int) -> None:
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
    model: CausalLM, parameters: Sequence[Tensor], displacements: Sequence[Displacement | None]
) -> Iterator[Replicas]:
    """The model at all displacements at once. Requires `can_replicate`."""
    thin = as_thin(displacements)
    stacked_of = _Dense(displacements, parameters) if thin is None else _Thin(thin, parameters)
    index = {id(p): i for i, p in enumerate(parameters)}
    handles = []
    for module in model.modules():
        own = {n: index[id(p)] for n, p in module.named_parameters(recurse=False) if id(p) in index}
        if not own:
            continue
        stacked = {name: stacked_of(i) for name, i in own.items()}
        kind = _Embedding if isinstance(module, nn.Embedding) else _Linear if isinstance(module, nn.Linear) else _Other
        handles.append(module.register_forward_hook(kind(stacked, len(displacements))))
    try:
        yield Replicas(model, len(displacements))
    finally:
        for handle in handles:
            handle.remove()


Stacked = Tensor | tuple[Tensor, Tensor]


class _Thin:
    """Low-rank displacements of a parameter, stacked over places: (scale * A, B), each (places, size, k).

    Of a vector it is the displacement, (places, size).
    """

    def __init__(self, terms: Sequence[tuple[float, Factored] | None], parameters: Sequence[Tensor]) -> None:
        moved = next(term[1] for term in terms if term is not None)
        self._scales = torch.tensor([0.0 if t is None else t[0] for t in terms], device=parameters[0].device)
        self._directions = [moved if t is None else t[1] for t in terms]
        self._parameters = parameters

    def __call__(self, index: int) -> Stacked:
        factors, dtype = [d.factors[index] for d in self._directions], self._parameters[index].dtype
        if dense := [factor for factor in factors if isinstance(factor, Tensor)]:
            stacked = torch.stack(dense)
            return (stacked * self._scales.view(-1, *[1] * (stacked.dim() - 1))).to(dtype)
        pairs = [factor for factor in factors if not isinstance(factor, Tensor)]
        left = torch.stack([a for a, _ in pairs]) * self._scales.view(-1, 1, 1)
        return left.to(dtype), torch.stack([b for _, b in pairs]).to(dtype)


class _Dense:
    """Displacements of a parameter, stacked over places: (places, *shape)."""

    def __init__(self, displacements: Sequence[Displacement | None], parameters: Sequence[Tensor]) -> None:
        self._displacements = displacements
        self._parameters = parameters

    def __call__(self, index: int) -> Tensor:
        like = self._parameters[index]
        stacked = torch.zeros((len(self._displacements), *like.shape), device=like.device)
        for place, displacement in zip(stacked, self._displacements, strict=True):
            for scale, direction in displacement.terms if displacement else ():
                place.add_(direction[index], alpha=scale)
        return stacked.to(like.dtype)


class _Hook:
    """A forward hook that turns a layer's output into that of its displaced weights, for each place."""

    def __init__(self, stacked: dict[str, Stacked], places: int) -> None:
        self.stacked = stacked
        self.places = places


class _Linear(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        displaced_output = output.view(self.places, -1, output.shape[-1])
        if (moved := self.stacked.get("weight")) is not None:
            inputs = args[0].reshape(self.places, -1, args[0].shape[-1])
            if isinstance(moved, Tensor):
                displaced_output = displaced_output.baddbmm_(inputs, moved.transpose(1, 2))
            else:
                left, right = moved
                displaced_output = displaced_output.baddbmm_(torch.bmm(inputs, right), left.transpose(1, 2))
        if isinstance(bias := self.stacked.get("bias"), Tensor):
            displaced_output = displaced_output.add_(bias.unsqueeze(1))
        return displaced_output.view(output.shape)


class _Embedding(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moved = self.stacked["weight"]
        ids = args[0].reshape(self.places, -1)
        of_place = torch.arange(self.places, device=ids.device).unsqueeze(1)
        if isinstance(moved, Tensor):
            return output + moved[of_place, ids].view(output.shape)
        left, right = moved
        rows = left[of_place, ids]
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
        displaced_weights = {
            name: weights[name].detach() + move for name, move in self.stacked.items() if isinstance(move, Tensor)
        }
        per_place = [a.view(self.places, -1, *a.shape[1:]) for a in args]

        def run(weights: dict[str, Tensor], *args: Tensor) -> Tensor:
            return torch.func.functional_call(module, weights, args)

        self.running = True
        try:
            return torch.vmap(run)(displaced_weights, *per_place).view(output.shape)
        finally:
            self.running = False
