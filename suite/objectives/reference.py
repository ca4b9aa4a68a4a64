"""The model before unlearning, in memory beside the one that unlearns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.models.encoding import Tokens
from suite.models.likelihood import answer_logits, hidden_states


class Reference:
    """The model before unlearning, asked once per batch, however often the batch is used."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._answers: list[tuple[Tokens, int | None, Tensor]] = []

    def logits(self, tokens: Tokens) -> Tensor:
        """As `answer_logits`."""
        return self._asked(tokens, None, lambda: answer_logits(self.model, tokens))

    def hidden_states(self, tokens: Tokens, layer: int) -> Tensor:
        """As `suite.models.likelihood.hidden_states`."""
        return self._asked(tokens, layer, lambda: hidden_states(self.model, tokens, layer))

    def _asked(self, tokens: Tokens, layer: int | None, ask: Callable[[], Tensor]) -> Tensor:
        for known, where, answer in self._answers:
            if known is tokens and where == layer:
                return answer
        with torch.no_grad():
            answer = ask()
        # Two: a step may ask about its forget and its retain texts in turn, and older steps never come back.
        self._answers = [*self._answers[-1:], (tokens, layer, answer)]
        return answer
