"""The model before unlearning, kept in memory beside the model that is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.models.encoding import Tokens
from suite.models.likelihood import LanguageModel, answer_logits, hidden_states


class Reference:
    """The model before unlearning. It runs once per batch, however often the batch is used."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._cache: list[tuple[Tokens, int | None, Tensor]] = []

    def logits(self, tokens: Tokens) -> Tensor:
        """As `answer_logits`."""
        return self._cached(tokens, None, lambda: answer_logits(self.model, tokens))

    def hidden_states(self, tokens: Tokens, layer: int) -> Tensor:
        """As `suite.models.likelihood.hidden_states`."""
        return self._cached(tokens, layer, lambda: hidden_states(self.model, tokens, layer))

    def _cached(self, tokens: Tokens, layer: int | None, compute: Callable[[], Tensor]) -> Tensor:
        for cached, cached_layer, output in self._cache:
            if cached is tokens and cached_layer == layer:
                return output
        with torch.no_grad():
            output = compute()
        # Two entries: a step may alternate between its forget and retain texts, and older batches are not used again.
        self._cache = [*self._cache[-1:], (tokens, layer, output)]
        return output
