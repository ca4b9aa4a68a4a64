"""Log-probabilities of answers under a causal language model: the one forward pass behind losses and scores."""

from __future__ import annotations

from functools import cache
from inspect import signature

import torch
from torch import Tensor

from suite.text import Tokens


def answer_logits(model: torch.nn.Module, tokens: Tokens) -> Tensor:
    """Logits that predict positions start..length-1 of each sequence: (sequences, length - start, vocabulary), fp32.

    The output layer runs on these positions alone, where the architecture allows it: for a small model it is a fifth
    of the work.
    """
    length = tokens.ids.shape[1]
    if _keeps_logits(type(model)):
        logits = model(input_ids=tokens.ids, use_cache=False, logits_to_keep=length - tokens.start + 1).logits
    else:
        logits = model(input_ids=tokens.ids, use_cache=False).logits[:, tokens.start - 1 :]
    return logits[:, :-1].float()


def answer_labels(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Labels and their mask, aligned with `answer_logits`: both (sequences, length - start)."""
    return tokens.ids[:, tokens.start :], tokens.answer[:, tokens.start :]


def token_logprobs(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """log p of each label in nats, float64, 0 where the mask is false: (sequences, positions).

    Float64 from here on: a zeroth-order difference is far smaller than the sum that it is taken from.
    """
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return ((chosen - logits.logsumexp(-1)).double()).masked_fill(~mask, 0.0)


def sequence_logprobs(model: torch.nn.Module, tokens: Tokens) -> Tensor:
    """log p(answer | prompt) summed over the answer's tokens, in nats: float64, (sequences,)."""
    labels, mask = answer_labels(tokens)
    return token_logprobs(answer_logits(model, tokens), labels, mask).sum(-1)


def mean_nll(model: torch.nn.Module, tokens: Tokens) -> Tensor:
    """Cross-entropy per answer token over the whole batch, in nats: float64, 0-dimensional."""
    return -sequence_logprobs(model, tokens).sum() / tokens.answer.sum()


@cache
def _keeps_logits(model: type[torch.nn.Module]) -> bool:
    return "logits_to_keep" in signature(model.forward).parameters
