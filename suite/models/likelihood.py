"""Log-probabilities of answers under a causal language model: the forward pass that losses and scores share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from suite.config.errors import UnsuitableError
from suite.models.encoding import Tokens
from suite.models.layers import blocks_of


class LanguageModel(Protocol):
    """A causal language model, or what stands for one."""

    def __call__(self, *, input_ids: Tensor, **options: Any) -> Any:
        """An output as transformers' models give it, with `logits`."""
        ...


@runtime_checkable
class Replicated(Protocol):
    """One model at several displacements, evaluated together."""

    replicated: torch.nn.Module

    def hidden_states(self, tokens: Tokens, layer: int) -> Tensor: ...


def answer_logits(model: LanguageModel, tokens: Tokens) -> Tensor:
    """Logits that predict positions start..length-1 of each sequence: (sequences, length - start, vocabulary), fp32.

    Where the architecture allows it, the output layer runs on these positions alone: for a small model it is a fifth of
    the computation.
    """
    length = tokens.ids.shape[1]
    if _keeps_logits(model.replicated if isinstance(model, Replicated) else model):
        logits = model(input_ids=tokens.ids, use_cache=False, logits_to_keep=length - tokens.start + 1).logits
    else:
        logits = model(input_ids=tokens.ids, use_cache=False).logits[:, tokens.start - 1 :]
    return logits[:, :-1].float()


def logits_at(model: LanguageModel, positions: Sequence[int], **inputs: Any) -> Tensor:
    """Logits at the given positions of each sequence: (sequences, positions, vocabulary), fp32.

    Args:
        inputs: the model's keyword arguments, `input_ids` among them; no cache is made unless one is given.
    """
    at = torch.tensor(positions, device=inputs["input_ids"].device)
    inputs = {"use_cache": "past_key_values" in inputs, **inputs}
    if _keeps_logits(model):
        return model(logits_to_keep=at, **inputs).logits.float()
    return model(**inputs).logits[:, at].float()


def answer_labels(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Labels and their mask, aligned with `answer_logits`: both (sequences, length - start)."""
    return tokens.ids[:, tokens.start :], tokens.answer[:, tokens.start :]


def token_logprobs(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """log p of each label in nats, float64, 0 where the mask is false: (sequences, positions).

    Float64 from here on: a zeroth-order difference is far smaller than the two sums that it is computed from.
    """
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return ((chosen - logits.logsumexp(-1)).double()).masked_fill(~mask, 0.0)


def sequence_logprobs(model: LanguageModel, tokens: Tokens) -> Tensor:
    """log p(answer | prompt) summed over the answer's tokens, in nats: float64, (sequences,)."""
    labels, mask = answer_labels(tokens)
    return token_logprobs(answer_logits(model, tokens), labels, mask).sum(-1)


def mean_nll(model: LanguageModel, tokens: Tokens) -> Tensor:
    """Cross-entropy per answer token over the whole batch, in nats: float64, 0-dimensional."""
    return -sequence_logprobs(model, tokens).sum() / tokens.answer.sum()


def answer_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (sequences, positions) values where the mask is true, over the whole batch: float64, 0-dimensional."""
    return values.double().masked_fill(~mask, 0.0).sum() / mask.sum()


def hidden_states(model: LanguageModel, tokens: Tokens, layer: int) -> Tensor:
    """Output of block `layer`, counted from 0, at every position: (sequences, length, hidden units), fp32.

    The embeddings are not a block, and no norm is applied after the last one. Later blocks are not run. A model whose
    blocks are not found is run to the end with `output_hidden_states`; there, transformers returns the last block's
    output after the norm.

    Raises:
        UnsuitableError: the model has no such block.
    """
    if isinstance(model, Replicated):
        return model.hidden_states(tokens, layer)
    blocks = blocks_of(model)
    if blocks is None:
        states = model(input_ids=tokens.ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
        return states[_within(layer, len(states))].float()
    hook = blocks[_within(layer, len(blocks))].register_forward_hook(_stop)
    try:
        model(input_ids=tokens.ids, use_cache=False)
    except _Stop as stop:
        return stop.states.float()
    finally:
        hook.remove()
    raise RuntimeError(f"{type(model).__name__} does not run its block {layer}")


class _Stop(Exception):
    """Not an error: carries the hidden states out of the forward pass, so that the later blocks need not run."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _stop(block: torch.nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
    raise _Stop(output[0] if isinstance(output, tuple) else output)


def _within(layer: int, blocks: int) -> int:
    if layer >= blocks:
        raise UnsuitableError(f"objective.layer: {layer}: the model has {blocks} blocks. Use 0 to {blocks - 1}")
    return layer


def _keeps_logits(model: LanguageModel) -> bool:
    kind = type(model)
    return _takes(getattr(kind, "forward", kind.__call__), "logits_to_keep")


@cache
def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in signature(function).parameters
