"""The batches of an unlearning run: the texts of each step, and their log-probabilities under the reference model.

Texts are tokenized once. The reference model's log-probabilities of complete answers are computed once too, so that an
objective that needs nothing else of the reference keeps no second model in memory while it runs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from suite.models.encoding import Encoded, Encoder, Tokens
from suite.models.likelihood import LanguageModel, sequence_logprobs
from suite.objectives import OBJECTIVES, ObjectiveSettings, Reference
from suite.oracle.batch import Batch
from suite.training.refusals import refused
from tasks.task import Example


class Batches:
    """Forget and retain texts as ids, with the refusals and reference log-probabilities that the objective needs.

    Args:
        forget, retain: texts of the request, and of the task.
        task: its name, for messages.
        reference: the model before any unlearning; needed where the objective `uses_forget_reference`.
        block: running text is cut into blocks of so many tokens; by default each text is one sequence of a batch.

    Raises:
        UnsuitableError: the objective teaches refusals, and a text cannot be refused.
    """

    def __init__(
        self,
        forget: Sequence[Example],
        retain: Sequence[Example],
        encoder: Encoder,
        objective: ObjectiveSettings,
        task: str,
        device: torch.device,
        reference: Reference | None = None,
        block: int | None = None,
    ) -> None:
        kind = OBJECTIVES[objective.name]
        self.device = device
        self.forget = encoder.examples(forget, block)
        self.retain = encoder.examples(retain, block)
        self.forget_refusals: list[Encoded] | None = None
        self.retain_refusals: list[Encoded] | None = None
        if kind.uses_forget_refusals:
            self.forget_refusals = encoder.examples(refused(forget, objective.name, task), None)
        if kind.needs_retain_refusals(objective):
            self.retain_refusals = encoder.examples(refused(retain, objective.name, task), None)
        self.forget_reference: Tensor | None = None
        self.forget_refusals_reference: Tensor | None = None
        if kind.uses_forget_reference:
            if reference is None:
                raise ValueError(f"{objective.name} compares the forget answers with a reference model")
            self.forget_reference = reference_logprobs(reference.model, self.forget, device)
            if self.forget_refusals is not None:
                self.forget_refusals_reference = reference_logprobs(reference.model, self.forget_refusals, device)

    def draw(self, size: int, steps: int, seed: int, done: int = 0) -> Iterator[Batch]:
        """A batch of `size` forget and `size` retain texts for each step; the same seed gives the same batches.

        Args:
            done: steps at the beginning whose batches are left out.
        """
        rng = random.Random(seed)
        forget_draws = draws(len(self.forget), size, rng)
        retain_draws = draws(len(self.retain), size, rng)
        for step in range(steps):
            forget, retain = next(forget_draws), next(retain_draws)
            if step < done:
                continue
            yield Batch(
                Tokens.collate([self.forget[i] for i in forget], self.device),
                Tokens.collate([self.retain[i] for i in retain], self.device),
                _select(self.forget_reference, forget),
                self._collate(self.forget_refusals, forget),
                _select(self.forget_refusals_reference, forget),
                self._collate(self.retain_refusals, retain),
            )

    def _collate(self, texts: list[Encoded] | None, rows: list[int]) -> Tokens | None:
        return None if texts is None else Tokens.collate([texts[i] for i in rows], self.device)


def _select(values: Tensor | None, rows: list[int]) -> Tensor | None:
    return None if values is None else values[rows]


def draws(total: int, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Indices drawn without replacement, epoch after epoch; an epoch's last batch is filled up from the next epoch."""
    pending: list[int] = []
    while True:
        while len(pending) < size:
            pending += rng.sample(range(total), total)
        yield pending[:size]
        pending = pending[size:]


@torch.no_grad()
def reference_logprobs(model: LanguageModel, texts: Sequence[Encoded], device: torch.device) -> Tensor:
    """Summed log-probability of each answer under the reference model, nats, float64: (texts,)."""
    return torch.cat(
        [sequence_logprobs(model, Tokens.collate(texts[i : i + 16], device)) for i in range(0, len(texts), 16)]
    )
