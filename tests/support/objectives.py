"""Objectives whose losses are written out in numpy, one unpadded text at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import logsumexp, softmax

from suite.models.encoding import Tokens
from suite.objectives import OBJECTIVES, Objective, Reference
from suite.oracle.batch import Batch
from tests.support.language_model import llama


def made(name: str, **changes: object) -> Objective:
    kind = OBJECTIVES[name]
    return kind(kind.Settings(**{**kind.example, **changes}), Reference(llama(1).requires_grad_(False)))


def unpadded(model: torch.nn.Module, tokens: Tokens) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits (n, vocabulary) and labels (n,) of each text's n answer tokens, one unpadded text at a time."""
    found = []
    for row in range(len(tokens)):
        places = tokens.answer[row].nonzero().flatten()
        ids = tokens.ids[row, : int(places[-1]) + 1]
        with torch.no_grad():
            logits = model(ids[None]).logits[0].double()
        found.append((logits[places - 1].numpy(), ids[places].numpy()))
    return found


def logprobs(texts: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """log p of each answer token, text by text."""
    return [(z - logsumexp(z, -1, keepdims=True))[np.arange(len(y)), y] for z, y in texts]


def states(model: torch.nn.Module, tokens: Tokens, layer: int) -> np.ndarray:
    """What block `layer` gives at every position of the unpadded texts, by a hook on the block: (positions, hidden)."""
    seen: list[torch.Tensor] = []
    hook = model.model.layers[layer].register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    for row in range(len(tokens)):
        with torch.no_grad():
            model(tokens.ids[row, : int(tokens.answer[row].nonzero()[-1]) + 1][None])
    hook.remove()
    return torch.cat([s[0] for s in seen]).double().numpy()


def forget_by_hand(name: str, model: torch.nn.Module, reference: torch.nn.Module, b: Batch) -> float:
    texts = unpadded(model, b.forget)
    sums = np.array([t.sum() for t in logprobs(texts)])
    lengths = np.array([len(y) for _, y in texts])
    p = np.exp(np.concatenate(logprobs(texts)))
    z, y = np.concatenate([z for z, _ in texts]), np.concatenate([y for _, y in texts])
    match name:
        case "gradient_ascent" | "graddiff":
            return sums.sum() / lengths.sum()
        case "task_vector":
            return -sums.sum() / lengths.sum()
        case "npo":
            return float(np.mean(2 / 0.1 * np.log1p(np.exp(0.1 * (sums - b.forget_reference.numpy())))))
        case "simnpo":
            return float(np.mean(2 / 0.5 * np.log1p(np.exp(0.5 * sums / lengths))))
        case "dpo":
            refusals = np.array([t.sum() for t in logprobs(unpadded(model, b.forget_refusals))])
            margin = refusals - b.forget_refusals_reference.numpy() - (sums - b.forget_reference.numpy())
            return float(np.mean(2 / 0.1 * np.log1p(np.exp(-0.1 * margin))))
        case "me_ap":
            entropies = [sum(1 / 23 * math.log(1 / 23 / q) for q in softmax(row)) for row in z]
            return float(np.mean(entropies))
        case "wga":
            return float(p.mean())
        case "satimp":
            return float(np.mean(p**5 / 5 - p**6 / 6))
        case "undial":
            old = np.concatenate([z for z, _ in unpadded(reference, b.forget)])
            old[np.arange(len(y)), y] -= 10.0
            return float(np.mean(-(softmax(old, -1) * np.log(softmax(z, -1))).sum(-1)))
        case "ce_u":
            later = np.concatenate([t[1:] if len(t) > 1 else t for t in logprobs(texts)])
            return float(np.mean(-np.log(1 - np.exp(later))))
        case "pdu":
            return float(np.mean((z.max(-1) - z.mean(-1)) ** 2))
        case "rmu":
            place = torch.rand(16, generator=torch.Generator().manual_seed(0)).double().numpy()
            return float(np.mean((states(model, b.forget, 0) - 2 * place / np.linalg.norm(place)) ** 2))
    raise AssertionError(f"{name}: write its formula out here")


def retain_by_hand(retain: str, model: torch.nn.Module, reference: torch.nn.Module, b: Batch) -> float:
    texts = unpadded(model, b.retain)
    match retain:
        case "nll":
            return float(-np.concatenate(logprobs(texts)).mean())
        case "kl":
            p, q = (softmax(np.concatenate([z for z, _ in unpadded(m, b.retain)]), -1) for m in (reference, model))
            return float((p * np.log(p / q)).sum(-1).mean())
        case "preservation":
            answers, refusals = (
                np.array([t.sum() for t in logprobs(unpadded(model, texts))]) for texts in (b.retain, b.retain_refusals)
            )
            return float(np.mean(np.log1p(np.exp(-0.1 * (answers - refusals)))) / 0.1)
        case "states":
            return float(np.mean((states(model, b.retain, 0) - states(reference, b.retain, 0)) ** 2))
    raise AssertionError(retain)
