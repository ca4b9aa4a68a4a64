"""Continuous batching: decodes many prompts, greedily or by sampling, in a batch that stays full.

Every prompt has a row of the cache while it is being continued. When a row ends, the last row moves into its place, and
waiting prompts are prefilled into the free rows: packed, so that a shared prefix is computed once. Every row begins in
column 0, so there is no left padding, and a step attends to as many columns as the longest row has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from suite.engines.sampling import Draw, drawn
from suite.engines.scores import batches
from suite.engines.transformers.continuation import Continuation, GenerationRequest
from suite.engines.transformers.grouped_attention import grouped
from suite.engines.transformers.packing import pack
from suite.engines.transformers.row_cache import RowCache, states_of
from suite.engines.transformers.shortcut import Shortcut
from suite.models.layers import carries_state, rope_switch
from suite.models.likelihood import logits_at

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM

REFILL_DIVISOR = 8
"""Prompts are prefilled once an eighth of the rows is free: a handful together costs little more than one."""

WITNESSES = 3
"""Continuations that are compared besides the longest one: one pass over each, once per architecture."""


def continued(
    model: CausalLM,
    requests: Sequence[GenerationRequest],
    *,
    ends: Collection[int],
    row_tokens: int,
    batch_tokens: int,
    decoding: Shortcut,
) -> list[list[int] | None]:
    """New tokens after each prompt, in the order of the requests, by `decode` where the architecture supports it.

    None where the model's logits are not finite: what it says then is an accident of the implementation.

    Args:
        ends: tokens that each end a continuation.
        row_tokens: positions of a packed row of prompts.
        batch_tokens: positions of a batch, new tokens included; see `decode`.
        decoding: whether the architecture is known to support `decode`.
    """

    def together(some: Sequence[GenerationRequest]) -> list[list[int] | None]:
        return _together(model, some, ends=ends, row_tokens=row_tokens, batch_tokens=batch_tokens, decoding=decoding)

    switch = rope_switch(model)
    if switch is None:
        return together(requests)
    # A text takes the angles of the longest one beside it, and of a cache the angles that its keys once had.
    found: dict[int, list[int] | None] = {}
    below = [i for i, request in enumerate(requests) if request.longest <= switch]
    beyond = [i for i, request in enumerate(requests) if len(request.prompt) > switch]
    for places in (below, beyond):
        found |= zip(places, together([requests[i] for i in places]), strict=True)
    neither = Shortcut(sound=False)
    for i in found.keys() ^ set(range(len(requests))):
        (one,) = _as_alone(model, [requests[i]], ends, _Ways(padded=neither, batched=neither, cached=neither))
        found[i] = one.sound
    return [found[i] for i in range(len(requests))]


def _together(
    model: CausalLM,
    requests: Sequence[GenerationRequest],
    *,
    ends: Collection[int],
    row_tokens: int,
    batch_tokens: int,
    decoding: Shortcut,
) -> list[list[int] | None]:
    if not requests:
        return []
    if decoding.sound:
        try:
            found = decode(model, requests, ends=ends, row_tokens=row_tokens, batch_tokens=batch_tokens)
            said = [c for c in found if not c.nothing]
            if not said or _verified(model, said, decoding):
                return [_alone(model, c, ends) if c.nothing else c.new for c in found]
        except Exception as error:
            decoding.refused(error)
    return decode_plainly(model, requests, ends=ends, batch_tokens=batch_tokens)


def _alone(model: CausalLM, continuation: Continuation, ends: Collection[int]) -> list[int] | None:
    """The new tokens of a prompt that had no finite logits in a batch; None where it has none alone either.

    In a packed row, and in the cache's rows, one prompt's NaN is the others' too, whatever the mask says.
    """
    if not all(map(math.isfinite, plain_best(model, continuation))):
        return None
    (new,) = decode_plainly(model, [continuation.request], ends=ends, batch_tokens=continuation.request.longest)
    return new


def decode(
    model: CausalLM,
    requests: Sequence[GenerationRequest],
    *,
    ends: Collection[int],
    row_tokens: int,
    batch_tokens: int,
) -> list[Continuation]:
    """Continuations in the order of the requests. Of equal logits the first one wins, as in torch.argmax.

    Args:
        batch_tokens: positions of the cache; or, if that is more, as many as fit into the memory that the logits of
            this many positions take when a batch is scored.
    """
    continuations = [Continuation(request) for request in requests]
    # The longest first, so that only short ones are left when no prompt waits any longer and the batch empties.
    waiting = sorted(continuations, key=lambda c: c.request.longest)
    with grouped(model):
        batch = _Batch(model, max(r.longest for r in requests), len(requests), ends, row_tokens, batch_tokens)
        while waiting or batch.live:
            free = batch.cache.rows - len(batch.live)
            if waiting and free >= min(len(waiting), max(1, batch.cache.rows // REFILL_DIVISOR)):
                batch.admit([waiting.pop() for _ in range(min(free, len(waiting)))])
            else:
                batch.step()
    return continuations


def decode_plainly(
    model: CausalLM, requests: Sequence[GenerationRequest], *, ends: Collection[int], batch_tokens: int
) -> list[list[int] | None]:
    """New tokens after each prompt by `model.generate`, in the largest batches that change nothing.

    None for a prompt whose logits are not finite. `ended` is not applied.

    Batches are padded on the left, or have prompts of one length, or are one prompt, with the model's cache or without.
    Every batch is compared with passes over some of its texts alone. Layers that carry a state see padding, whatever
    the mask says, so a model that has such layers is never padded.
    """
    ways = _Ways(padded=Shortcut(sound=not carries_state(model)))
    results: dict[int, list[int] | None] = {}
    for batch in batches([request.longest for request in requests], batch_tokens):
        found = _as_alone(model, [requests[i] for i in batch], ends, ways)
        for i, continuation in zip(batch, found, strict=True):
            results[i] = continuation.sound
    return [results[i] for i in range(len(requests))]


@dataclass
class _Ways:
    """What is known about `model.generate` on padded batches, on batches of prompts of one length, and with a cache."""

    padded: Shortcut
    batched: Shortcut = field(default_factory=Shortcut)
    cached: Shortcut = field(default_factory=Shortcut)


def _as_alone(
    model: CausalLM, requests: Sequence[GenerationRequest], ends: Collection[int], ways: _Ways
) -> list[Continuation]:
    """The continuations that each prompt has alone, in the order of the requests."""
    by_length: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        by_length.setdefault(len(request.prompt), []).append(place)
    one_length, one_text = len(by_length) == 1, len(requests) == 1
    way = ways.cached if one_text else ways.batched if one_length else ways.padded
    if way.sound:
        try:
            found = generated(model, requests, ends)
            if _compared(model, found, way):
                return found
        except Exception as error:
            way.refused(error)
    if one_text:
        return generated(model, requests, ends, use_cache=False)
    parts = [[place] for place in range(len(requests))] if one_length else by_length.values()
    pieces: dict[int, Continuation] = {}
    for places in parts:
        pieces.update(zip(places, _as_alone(model, [requests[i] for i in places], ends, ways), strict=True))
    return [pieces[place] for place in range(len(requests))]


def generated(
    model: CausalLM,
    requests: Sequence[GenerationRequest],
    ends: Collection[int],
    use_cache: bool = True,
    hidden: int | None = None,
) -> list[Continuation]:
    """The continuations of one batch by `model.generate`, in the order of the requests.

    Args:
        hidden: a token that the attention mask leaves out wherever a prompt has it.
    """
    length = max(len(request.prompt) for request in requests)
    before = [length - len(request.prompt) for request in requests]
    # Padding is masked, so any id will do; 0 exists in every vocabulary.
    ids = torch.tensor([[0] * n + list(r.prompt) for n, r in zip(before, requests, strict=True)], device=model.device)
    real = torch.tensor([[0] * n + [1] * (length - n) for n in before], device=model.device)
    if hidden is not None:
        real = real.masked_fill(ids == hidden, 0)
    steps = _Steps(requests, length)
    new = model.generate(
        input_ids=ids,
        attention_mask=real,
        max_new_tokens=max(request.limit for request in requests),
        logits_processor=LogitsProcessorList([steps]),
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=0,
        use_cache=use_cache,
    )[:, length:].tolist()
    found = []
    for row, request, best in zip(new, requests, torch.stack(steps.best, 1).tolist(), strict=True):
        end = min(next((place for place, token in enumerate(row) if token in ends), len(row)), request.limit)
        found.append(Continuation(request, row[:end], best[: min(end + 1, request.limit)]))
    return found


def _compared(model: CausalLM, found: Sequence[Continuation], way: Shortcut) -> bool:
    """Whether a batch gave what passes over its texts alone give, for the most padded text and the most varied ones."""
    shortest = min(found, key=lambda c: len(c.request.prompt))
    witnesses = {id(c): c for c in (shortest, *sorted(found, key=lambda c: -len(set(c.text)))[:WITNESSES])}.values()
    best = [logit for c in witnesses for logit in c.best]
    plain = [logit for c in witnesses for logit in plain_best(model, c)]
    return way.compare(best, plain, max(len(c.text) for c in witnesses), model.dtype)


class _Steps(LogitsProcessor):
    """Notes each step's largest logits, and masks all tokens but the drawn one in rows that sample.

    Then greedy decoding picks the drawn one.

    Attributes:
        best: the largest logit of each row, step by step.
    """

    def __init__(self, requests: Sequence[GenerationRequest], prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.best: list[Tensor] = []
        self.draws = {row: request.draw for row, request in enumerate(requests) if request.draw}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.best.append(scores.amax(-1).float())
        if not self.draws:
            return scores
        step = input_ids.shape[1] - self.prompt_length
        rows = list(self.draws)
        tokens = _drawn(scores[rows], [(draw, step) for draw in self.draws.values()])
        masked = scores.clone()
        masked[rows] = -torch.inf
        masked[rows, tokens] = 0.0
        return masked


def plain_best(model: CausalLM, continuation: Continuation) -> list[float]:
    """The largest logit at each step of a continuation, computed in one pass over its text, without a cache."""
    first = len(continuation.request.prompt) - 1
    ids = torch.tensor([continuation.text], device=model.device)
    logits = logits_at(model, range(first, first + len(continuation.best)), input_ids=ids)
    return logits[0].amax(-1).tolist()


def _verified(model: CausalLM, found: Sequence[Continuation], decoding: Shortcut) -> bool:
    """Whether continuations of this length have been compared before, or agree now with a pass over their texts."""
    by_length = sorted(found, key=lambda c: -len(c.text))
    length = len(by_length[0].text)
    if length <= decoding.checked:
        return True
    # A text that repeats one token looks the same through any attention window, so compare the most varied ones too,
    # and a short one, whose row of the cache is mostly empty.
    varied = sorted(found, key=lambda c: -len(set(c.text)))
    witnesses = [by_length[0], *varied[:WITNESSES], min(found, key=lambda c: (len(c.best) < 2, len(c.text)))]
    best = [logit for c in witnesses for logit in c.best]
    return decoding.compare(best, [logit for c in witnesses for logit in plain_best(model, c)], length, model.dtype)


class _Batch:
    """The batch of prompts that are being continued. Row b of the cache belongs to `live[b]`."""

    def __init__(
        self,
        model: CausalLM,
        columns: int,
        max_rows: int,
        ends: Collection[int],
        row_tokens: int,
        batch_tokens: int,
    ) -> None:
        self.model, self.ends, self.row_tokens = model, ends, row_tokens
        self.live: list[Continuation] = []
        probe = DynamicCache()
        logits = logits_at(model, [0], input_ids=torch.tensor([[0]], device=model.device), past_key_values=probe)
        cache_bytes = sum(states.nbytes for layer in states_of(probe) for states in layer)
        positions = max(batch_tokens, batch_tokens * logits.nbytes // cache_bytes)
        self.cache = RowCache(probe, min(max_rows, max(1, positions // columns)), columns)

    def admit(self, prompts: Sequence[Continuation]) -> None:
        """Prefill prompts, and choose the first token after each."""
        device, dtype = self.model.device, self.model.dtype
        for row in pack([c.request.prompt for c in prompts], self.row_tokens):
            prefilled = DynamicCache()
            tips = [path[-1] for _, path in row.paths]
            kept = sorted(set(tips))
            logits = logits_at(self.model, kept, past_key_values=prefilled, **row.inputs(device, dtype))[0]
            places = {tip: at for at, tip in enumerate(kept)}
            first = _next(logits, [places[tip] for tip in tips], [prompts[index] for index, _ in row.paths])
            for (index, path), token in zip(row.paths, first, strict=True):
                if prompts[index].take(*token, self.ends):
                    self.cache.read(len(self.live), prefilled, torch.tensor(path, device=device))
                    self.live.append(prompts[index])

    def step(self) -> None:
        """Decode one more token of each row."""
        device = self.model.device
        lengths = [c.cached for c in self.live]
        mask = self.cache.place(lengths, self.model.dtype)
        logits = logits_at(
            self.model,
            [0],
            input_ids=torch.tensor([[c.new[-1]] for c in self.live], device=device),
            position_ids=torch.tensor([[length] for length in lengths], device=device),
            attention_mask=mask,
            past_key_values=self.cache,
        )
        tokens = _next(logits[:, 0], range(len(self.live)), self.live)
        going = [c.take(*token, self.ends) for c, token in zip(self.live, tokens, strict=True)]
        for row in reversed([row for row, goes_on in enumerate(going) if not goes_on]):
            last = self.live.pop()
            if row < len(self.live):
                self.cache.move(len(self.live), row, last.cached)
                self.live[row] = last


def _next(logits: Tensor, rows: Sequence[int], continuations: Sequence[Continuation]) -> list[tuple[int, float]]:
    """The next token of each continuation, greedy or drawn, and the largest logit there.

    Args:
        logits: (rows, vocabulary).
        rows: the row of each continuation; continuations with the same text so far may share one.
    """
    best, tokens = (x.tolist() for x in logits.max(-1))
    chosen = [tokens[row] for row in rows]
    if draws := {place: c.request.draw for place, c in enumerate(continuations) if c.request.draw}:
        steps = [(draw, len(continuations[place].new)) for place, draw in draws.items()]
        sampled = _drawn(logits[[rows[place] for place in draws]], steps).tolist()
        for place, token in zip(draws, sampled, strict=True):
            chosen[place] = token
    return [(token, best[row]) for token, row in zip(chosen, rows, strict=True)]


def _drawn(logits: Tensor, steps: Sequence[tuple[Draw, int]]) -> Tensor:
    return drawn(logits, [draw.temperature for draw, _ in steps], [draw.uniform(step) for draw, step in steps])
