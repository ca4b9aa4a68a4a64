"""Greedy coordinate gradient: a text whose tokens are swapped, one a step, until a model says what it should.

The gradient of the target's loss with respect to the one-hot vectors of the text's tokens ranks the swaps, roughly;
the loss itself decides among some of the best (Zou et al. 2023, arXiv 2307.15043, Algorithm 1).
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

from suite.attacks.prompts.gcg_places import Ids, Prompt
from suite.engines.scores import ScoreRequest, scored
from suite.engines.transformers.engine import ROW_TOKENS
from suite.engines.transformers.shortcut import Shortcut
from suite.oracle.displaced import reads_rows

BATCH_TOKENS = 4096
"""Positions of a batch. Part of what the last bits depend on, so it is no setting."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best text of a search.

    Attributes:
        loss: its loss (see `text_losses`).
        losses: loss of the text after each step, the start's first.
    """

    ids: Ids
    loss: float
    losses: tuple[float, ...]


def search(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    start: Ids,
    *,
    steps: int,
    candidates: int,
    top_k: int,
    allowed: Tensor,
    survives: Callable[[Ids], bool],
    generator: torch.Generator,
) -> Found:
    """The text with the least loss that was met on the way from `start`, the start included.

    Each step goes to the best of its candidates, also where that is worse than where it stands (Algorithm 1).

    Args:
        candidates: swaps whose loss is computed in a step; drawn without replacement, so that with as many as there
            are a step is exhaustive.
        top_k: tokens per place that are drawn from: those with the steepest descent.
        allowed: (vocabulary,) bool, the tokens that may be put in.
        survives: whether a text is read back as its own tokens; the others are passed over.
        generator: on the CPU.
    """
    packing = Shortcut()
    with _frozen(model):
        here = best = start
        losses = text_losses(model, prompts, [start], packing)
        for _ in range(steps):
            gradient = token_gradient(model, prompts, here).cpu()
            offered = filter(survives, swaps(here, gradient, top_k, allowed, generator))
            texts = list(islice(offered, candidates))
            if not texts:
                break
            found = text_losses(model, prompts, texts, packing)
            least = min(range(len(found)), key=found.__getitem__)
            here = texts[least]
            if found[least] < min(losses):
                best = here
            losses.append(found[least])
    return Found(best, min(losses), tuple(losses))


def token_gradient(model: PreTrainedModel, prompts: Sequence[Prompt], ids: Ids) -> Tensor:
    """Gradient of the loss with respect to the one-hot vectors of the text's tokens: (tokens, vocabulary), fp32.

    The text's embeddings are those vectors times the embedding table, so it is the gradient with respect to them times
    the table's transpose.
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
    """Texts with one token of the `top_k` best of its place for another, each once, in random order.

    Args:
        gradient, allowed: as for `search`, both on the CPU.
    """
    here = torch.tensor(ids).unsqueeze(1)
    descent = (-gradient).masked_fill(~allowed, -math.inf).scatter(1, here, -math.inf)
    steepest = descent.topk(min(top_k, descent.shape[1]), dim=1)
    tokens, possible = steepest.indices.tolist(), (steepest.values > -math.inf).tolist()
    for drawn in torch.randperm(steepest.indices.numel(), generator=generator).tolist():
        place, rank = divmod(drawn, steepest.indices.shape[1])
        if possible[place][rank]:
            yield (*ids[:place], tokens[place][rank], *ids[place + 1 :])


def text_losses(
    model: PreTrainedModel, prompts: Sequence[Prompt], texts: Sequence[Ids], packing: Shortcut | None = None
) -> list[float]:
    """Loss of each text: -log p per token of the target, in nats, averaged over the prompts; infinite for NaN."""
    asked = [ScoreRequest(prompt.around(ids)) for ids in texts for prompt in prompts]
    row_tokens = ROW_TOKENS if model.device.type == "cpu" else BATCH_TOKENS
    with torch.inference_mode():
        scores = scored(model, asked, row_tokens=row_tokens, batch_tokens=BATCH_TOKENS, packing=packing or Shortcut())
    nll = [-math.fsum(score.logprobs) / len(score.logprobs) for score in scores]
    means = (math.fsum(nll[i : i + len(prompts)]) / len(prompts) for i in range(0, len(nll), len(prompts)))
    return [math.inf if math.isnan(mean) else mean for mean in means]


def _table(model: PreTrainedModel) -> Tensor:
    """(vocabulary, hidden) what each token becomes; some layers scale their weight."""
    layer = model.get_input_embeddings()
    if reads_rows(layer):
        return layer.weight.detach()
    with torch.no_grad():
        return layer(torch.arange(layer.weight.shape[0], device=layer.weight.device))


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """The gradient stops at the text: none is computed for the weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
