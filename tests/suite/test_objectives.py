"""Objectives against formulas written out, and against each other in the limits where they meet."""

from __future__ import annotations

import math

import pytest
import torch
from test_oracle import batch, llama

from suite.likelihood import mean_nll, sequence_logprobs, token_logprobs
from suite.objectives import OBJECTIVES, Reference
from suite.objectives.base import token_kl
from suite.objectives.preference import npo, simnpo
from suite.text import Encoded, Tokens


def by_hand(model: torch.nn.Module, tokens: Tokens) -> list[list[float]]:
    """log p of each answer token, one unpadded text at a time."""
    found = []
    for row in range(len(tokens)):
        places = tokens.answer[row].nonzero().flatten().tolist()
        ids = tokens.ids[row, : places[-1] + 1]
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
        found.append([float(logprobs[place - 1, ids[place]].detach()) for place in places])
    return found


def test_likelihoods_are_those_of_unpadded_texts():
    model, tokens = llama(), batch().forget
    expected = by_hand(model, tokens)
    assert sequence_logprobs(model, tokens).tolist() == pytest.approx([sum(e) for e in expected], abs=1e-5)
    flat = [value for text in expected for value in text]
    assert float(mean_nll(model, tokens).detach()) == pytest.approx(-sum(flat) / len(flat), abs=1e-6)


def test_log_probabilities_are_summed_in_float64():
    logits = torch.randn(1, 3, 5)
    assert token_logprobs(logits, torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)).dtype is torch.float64


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("retain", ["nll", "kl"])
def test_losses_by_their_formulas(name, retain):
    model, reference, b = llama(), llama(1), batch()
    kind = OBJECTIVES[name]
    s = kind.Settings(retain=retain, retain_weight=0.7, forget_weight=1.3)
    objective = kind(s, Reference(reference.requires_grad_(False)))
    forget = by_hand(model, b.forget)
    sums, lengths = [sum(f) for f in forget], [len(f) for f in forget]
    match name:
        case "gradient_ascent" | "graddiff":
            expected = sum(sums) / sum(lengths)
        case "npo":
            ratios = [value - float(r) for value, r in zip(sums, b.forget_reference, strict=True)]
            expected = 2 / 0.1 * sum(math.log1p(math.exp(0.1 * r)) for r in ratios) / len(ratios)
        case "simnpo":
            means = [value / n for value, n in zip(sums, lengths, strict=True)]
            expected = 2 / 4.5 * sum(math.log1p(math.exp(4.5 * m)) for m in means) / len(means)
    assert float(objective.forget(model, b).detach()) == pytest.approx(1.3 * expected, rel=1e-5)
    if retain == "nll":
        kept = [value for text in by_hand(model, b.retain) for value in text]
        expected = -sum(kept) / len(kept)
    else:
        p = reference(b.retain.ids).logits.softmax(-1)
        q = model(b.retain.ids).logits.softmax(-1)
        divergences = [
            float((p[row, place - 1] * (p[row, place - 1] / q[row, place - 1]).log()).sum().detach())
            for row, place in b.retain.answer.nonzero().tolist()
        ]
        expected = sum(divergences) / len(divergences)
    assert float(objective.retain(model, b).detach()) == pytest.approx(0.7 * expected, rel=1e-4)


def test_npo_without_temperature_is_gradient_ascent_on_whole_answers():
    """Prop. 1 of the paper: for beta -> 0 the gradient with respect to log p is that of the log-probability itself."""
    logprobs = torch.tensor([-3.0, -40.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(npo(logprobs, torch.tensor([-1.0, -2.0]), beta=1e-6), logprobs)
    assert gradient.tolist() == pytest.approx([0.5, 0.5], rel=1e-4)  # the mean of two


def test_npo_stops_pulling_once_an_answer_is_gone():
    logprobs = torch.tensor([-1.0, -200.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(npo(logprobs, torch.tensor([-1.0, -1.0]), beta=0.1), logprobs)
    assert gradient[1] < 1e-6 * gradient[0]


def test_simnpo_counts_tokens_and_not_answers():
    lengths = torch.tensor([2, 20])
    logprobs = torch.tensor([-2.0, -20.0], dtype=torch.float64)
    one, other = (simnpo(logprobs[i : i + 1], lengths[i : i + 1], 1.0, 0.0) for i in range(2))
    assert float(one) == pytest.approx(float(other))


def test_kl_is_zero_against_itself_and_ignores_prompts_and_padding():
    tokens = batch().retain
    logits = torch.randn(2, tokens.ids.shape[1] - tokens.start, 23, dtype=torch.float64)
    assert float(token_kl(logits, logits, tokens)) == pytest.approx(0, abs=1e-12)
    other = logits.clone()
    other[~tokens.answer[:, tokens.start :]] += torch.randn(23, dtype=torch.float64)
    assert float(token_kl(logits, other, tokens)) == pytest.approx(0, abs=1e-12)


def test_the_reference_is_asked_once_per_batch():
    model, calls = llama(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    reference, b = Reference(model), batch()
    assert torch.equal(reference.logits(b.retain), reference.logits(b.retain))
    reference.logits(batch(1).retain)
    assert len(calls) == 2


def test_an_answer_without_a_prompt_loses_its_first_token_only():
    assert Tokens.collate([Encoded((5, 6, 7), 1)]).answer.tolist() == [[False, True, True]]
