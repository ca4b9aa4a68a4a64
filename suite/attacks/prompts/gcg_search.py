"""Greedy coordinate gradient: swap one token of a text per step, so that a model gives a target answer.

The gradient of the target's loss with respect to the one-hot vectors of the text's tokens ranks the swaps roughly; the
loss itself then decides among some of the best (Zou et al. 2023, arXiv 2307.15043, Algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from suite.attacks.prompts.gcg_places import Ids, SplitPrompt
from suite.engines.scores import ScoreRequest, scored
from suite.engines.transformers.engine import ROW_TOKENS
from suite.engines.transformers.shortcut import Shortcut
from suite.oracle.displaced import reads_rows

BATCH_TOKENS = 4096
"""Positions of a batch. Not a setting, because the last bits of the losses depend on it."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best text of a search.

    Attributes:
        loss: its loss (see `text_losses`).
        losses: loss of the text after each step, from the start.
    """

    ids: Ids
    loss: float
    losses: tuple[float, ...]


def search(
    model: PreTrainedModel,
    prompts: Sequence[SplitPrompt],
    start: Ids,
    *,
    steps: int,
    candidates: int,
    top_k: int,
    allowed: Tensor,
    survives: Callable[[Ids], bool],
    generator: torch.Generator,
) -> SearchResult:
    """The text with the lowest loss of all texts that the search went through from `start`, including `start`.

    Each step moves to its best candidate, even if that is worse than the current text (Algorithm 1).

    Args:
        candidates: swaps whose loss is computed in a step; drawn without replacement, so that a step tries all swaps if
            there are no more than this.
        top_k: tokens per position to draw from: those with the steepest descent.
        allowed: (vocabulary,) bool, the tokens that may be used.
        survives: whether a text tokenizes back to its own ids; texts that do not are skipped.
        generator: on the CPU.
    """
    packing = Shortcut()
    with _frozen(model):
        current = best = start
        losses = text_losses(model, prompts, [start], packing)
        for _ in range(steps):
            gradient = token_gradient(model, prompts, current).cpu()
            surviving = filter(survives, swaps(current, gradient, top_k, allowed, generator))
            texts = list(islice(surviving, candidates))
            if not texts:
                break
            candidate_losses = text_losses(model, prompts, texts, packing)
            least = min(range(len(texts)), key=candidate_losses.__getitem__)
            current = texts[least]
            if candidate_losses[least] < min(losses):
                best = current
            losses.append(candidate_losses[least])
    return SearchResult(best, min(losses), tuple(losses))


def token_gradient(model: PreTrainedModel, prompts: Sequence[SplitPrompt], ids: Ids) -> Tensor:
    """Gradient of the loss with respect to the one-hot vectors of the text's tokens: (tokens, vocabulary), fp32.

    The text's embeddings are those vectors times the embedding table, so this is the gradient with respect to the
    embeddings times the table's transpose.
    """
    table = _table(model)
    text = table[list(ids)].detach().requires_grad_()
    total = torch.zeros_like(text, dtype=torch.float32)
    for prompt in prompts:
        encoded, first = prompt.around(ids), len(prompt.before)
        all_ids = torch.tensor([encoded.ids], device=text.device)
        given = model.get_input_embeddings()(all_ids).detach()
        inputs = torch.cat([given[:, :first], text[None], given[:, first + len(ids) :]], 1)
        logits = model(inputs_embeds=inputs, use_cache=False).logits[0, encoded.start - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(logits, all_ids[0, encoded.start :])
        total += torch.autograd.grad(loss, text)[0]
    return (total / len(prompts)) @ table.float().T


def swaps(ids: Ids, gradient: Tensor, top_k: int, allowed: Tensor, generator: torch.Generator) -> Iterator[Ids]:
    """Texts with one token swapped for one of the `top_k` best at its position, each once, in random order.

    Args:
        gradient, allowed: as for `search`, both on the CPU.
    """
    current = torch.tensor(ids).unsqueeze(1)
    descent = (-gradient).masked_fill(~allowed, -math.inf).scatter(1, current, -math.inf)
    steepest = descent.topk(min(top_k, descent.shape[1]), dim=1)
    tokens, possible = steepest.indices.tolist(), (steepest.values > -math.inf).tolist()
    for index in torch.randperm(steepest.indices.numel(), generator=generator).tolist():
        position, rank = divmod(index, steepest.indices.shape[1])
        if possible[position][rank]:
            yield (*ids[:position], tokens[position][rank], *ids[position + 1 :])


def text_losses(
    model: PreTrainedModel, prompts: Sequence[SplitPrompt], texts: Sequence[Ids], packing: Shortcut | None = None
) -> list[float]:
    """Loss of each text: -log p per token of the target, in nats, averaged over the prompts; infinite for NaN."""
    requests = [ScoreRequest(prompt.around(ids)) for ids in texts for prompt in prompts]
    row_tokens = ROW_TOKENS if model.device.type == "cpu" else BATCH_TOKENS
    with torch.inference_mode():
        scores = scored(
            model, requests, row_tokens=row_tokens, batch_tokens=BATCH_TOKENS, packing=packing or Shortcut()
        )
    nll = [-math.fsum(score.logprobs) / len(score.logprobs) for score in scores]
    means = (math.fsum(nll[i : i + len(prompts)]) / len(prompts) for i in range(0, len(nll), len(prompts)))
    return [math.inf if math.isnan(mean) else mean for mean in means]


def _table(model: PreTrainedModel) -> Tensor:
    """Embedding of each token, (vocabulary, hidden). It is not always the layer's weight: some layers scale it."""
    layer = model.get_input_embeddings()
    weight = layer.get_parameter("weight")
    if reads_rows(layer):
        return weight.detach()
    with torch.no_grad():
        return layer(torch.arange(len(weight), device=weight.device))


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Computes no gradients for the weights while the context lasts: only those of the text are needed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
