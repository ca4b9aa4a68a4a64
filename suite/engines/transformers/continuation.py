"""A prompt to continue, and what has been said after it so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from suite.engines.sampling import Draw


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to continue.

    Attributes:
        limit: maximum length of the continuation, in tokens, at least 1.
        ended: whether a continuation is already complete.
        draw: how its tokens are drawn; None for greedy decoding.
        stop: ids of tokens each of which completes a continuation by itself. They cover only a part of what `ended`
            tests, for engines that cannot call it.
    """

    prompt: tuple[int, ...]
    limit: int
    ended: Callable[[Sequence[int]], bool] = lambda new: False
    draw: Draw | None = None
    stop: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        return len(self.prompt) + self.limit


@dataclass(slots=True)
class Continuation:
    """The tokens after a prompt, without the one that ends them.

    Attributes:
        best: the largest logit at each step, the one of the ending token included. With sampling it may belong to
            another token than the chosen one.
        nothing: whether a step's logits are not finite, so that the model says nothing.
    """

    request: GenerationRequest
    new: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    nothing: bool = False

    def take(self, token: int, logit: float, ends: Collection[int]) -> bool:
        """Add the next token, and return whether more are needed."""
        self.best.append(logit)
        self.nothing = not math.isfinite(logit)
        if token in ends or self.nothing:
            return False
        self.new.append(token)
        return len(self.new) < self.request.limit and not self.request.ended(self.new)

    @property
    def sound(self) -> list[int] | None:
        """The new tokens; None where the logits of a step are not finite."""
        return self.new if all(map(math.isfinite, self.best)) else None

    @property
    def text(self) -> tuple[int, ...]:
        return (*self.request.prompt, *self.new)

    @property
    def cached(self) -> int:
        """Tokens in the cache: all but the newest."""
        return len(self.request.prompt) + len(self.new) - 1
