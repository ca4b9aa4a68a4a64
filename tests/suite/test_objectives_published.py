"""Defects of published unlearning code that ours must not have, each described in one sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, logsigmoid, pad

from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import answer_logits, sequence_logprobs
from suite.objectives import OBJECTIVES
from suite.objectives.base import token_kl
from suite.objectives.distillation import ce_u, undial
from suite.objectives.weighted import satimp, wga
from suite.oracle.base import Part
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle
from suite.testing.language_model import full_batch
from tests.support.language_model import llama
from tests.support.objectives import made


def says(logits: Tensor):
    """A model that returns these logits, (sequences, length, vocabulary), whatever its input."""
    return lambda input_ids, use_cache: SimpleNamespace(logits=logits)


def one(texts: Tokens, row: int) -> Tokens:
    """One text of a batch, without its padding."""
    length = int(texts.text[row].sum())
    return Tokens(texts.ids[row : row + 1, :length], texts.answer[row : row + 1, :length], texts.start)


def longer(texts: Tokens, padding: int = 5) -> Tokens:
    """The same texts with more padding."""
    return Tokens(pad(texts.ids, (0, padding)), pad(texts.answer, (0, padding)), texts.start)


def test_retain_kl_is_per_answer_token():
    """Published code averages the retain KL over every position of the batch, prompts and padding among them."""
    tokens, draw = full_batch().retain, torch.Generator().manual_seed(0)
    p, q = (torch.randn(*tokens.ids.shape, 23, generator=draw) for _ in range(2))
    places = tokens.answer[:, 1:].nonzero().tolist()
    new, old = q.log_softmax(-1), p.log_softmax(-1)
    by_hand = sum(kl_div(new[row, i], old[row, i], log_target=True, reduction="sum") for row, i in places)
    shown = slice(tokens.start - 1, -1)
    assert float(token_kl(p[:, shown], q[:, shown], tokens)) == pytest.approx(float(by_hand) / len(places), rel=1e-5)


def test_npo_compares_log_probabilities():
    """Published code takes differences of raw logits: a constant added to all logits of a token changes its loss."""
    b, draw = full_batch(), torch.Generator().manual_seed(0)
    logits = torch.randn(*b.forget.ids.shape, 23, generator=draw)
    shifted = logits + 30 * torch.randn(*b.forget.ids.shape, 1, generator=draw)
    objective = made("npo")
    assert float(objective.forget(says(shifted), b)) == pytest.approx(
        float(objective.forget(says(logits), b)), rel=1e-4
    )


def test_npo_sums_over_each_answer_before_the_sigmoid():
    """Published code puts the batch's mean token loss into the sigmoid, one number for all answers."""
    model, b = llama(), full_batch()
    objective = made("npo")
    alone = [
        objective.forget(model, Batch(one(b.forget, row), b.retain, b.forget_reference[row : row + 1]))
        for row in range(len(b.forget))
    ]
    batch_loss = float(objective.forget(model, b).detach())
    assert batch_loss == pytest.approx(float(sum(alone).detach()) / len(alone), rel=1e-5)
    mean = sequence_logprobs(model, b.forget).sum() / b.forget.answer.sum() - b.forget_reference.mean()
    assert batch_loss != pytest.approx(float(-20 * logsigmoid(-0.1 * mean).detach()), rel=0.05)


def test_undial_teaches_answers_alone():
    """Published code indexes with the ignore label (-100 wraps to vocabulary - 100) and averages over all positions."""
    tokens, draw = full_batch().forget, torch.Generator().manual_seed(0)
    labels, mask = tokens.ids[:, tokens.start :], tokens.answer[:, tokens.start :]
    old, new = (torch.randn(*labels.shape, 131, generator=draw) for _ in range(2))
    expected = undial(old, new, labels, mask, 10.0)
    for logits in (old, new):
        logits[~mask] = 50 * torch.randn(131, generator=draw)
    other_labels = labels.masked_fill(~mask, 31)  # 131 - 100
    assert float(undial(old, new, other_labels, mask, 10.0)) == pytest.approx(float(expected), rel=1e-6)
    rows = [(row, place) for row, place in mask.nonzero().tolist()]
    by_hand = 0.0
    for row, place in rows:
        target = old[row, place].clone()
        target[labels[row, place]] -= 10.0
        by_hand += float(cross_entropy(new[row, place], target.softmax(-1)))
    assert float(expected) == pytest.approx(by_hand / len(rows), rel=1e-5)


def test_pdu_flattens_the_logits_that_predict_the_answer():
    """Published code leaves logits and mask unshifted against each other: the first answer token is not flattened."""
    tokens = Tokens.collate([Encoded((1, 2, 3, 4), 2)])  # the answer 3, 4 is predicted at places 1 and 2
    b = Batch(tokens, tokens)
    objective = made("pdu")
    for place, expected in enumerate([0.0, 18.0, 18.0, 0.0]):
        logits = torch.zeros(1, 4, 4)
        logits[0, place, 0] = 8.0  # max - mean = 6, over two answer tokens
        assert float(objective.forget(says(logits), b)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["wga", "satimp"])
def test_weighted_ascent_keeps_no_second_model(name):
    """Published code copies a reference model that it never asks."""
    kind = OBJECTIVES[name]
    assert not kind.needs_reference(kind.Settings())
    assert not kind.uses_forget_reference
    kind(kind.Settings(), None).forget(llama(), full_batch())


def published_wga(p: Tensor, beta: float) -> Tensor:
    return -(p.detach() ** beta * -p.log()).mean()


def published_satimp(p: Tensor, beta1: float, beta2: float) -> Tensor:
    return -(p.detach() ** beta1 * (1 - p.detach()) ** beta2 * -p.log()).mean()


@pytest.mark.parametrize(
    ("ours", "published", "powers"),
    [(wga, published_wga, (1.0,)), (wga, published_wga, (0.3,)), (satimp, published_satimp, (5.0, 1.0)),
     (satimp, published_satimp, (0.7, 2.0))],
)  # fmt: skip
def test_weighted_ascent_has_the_published_gradient(ours, published, powers):
    """The weights are constants to the published gradient; ours is the function that has this gradient."""
    logits = torch.randn(1, 6, 9, dtype=torch.float64, requires_grad=True)
    scored = logits.log_softmax(-1)[..., 4]
    (got,) = torch.autograd.grad(ours(scored, torch.ones(1, 6, dtype=torch.bool), *powers), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(published(scored.exp(), *powers), logits)
    torch.testing.assert_close(got, expected)


def test_weighted_ascent_pulls_down_unlikely_tokens_by_its_values_too():
    """Values of the published weighted losses rise along directions in which the gradient descends (p < 1/e)."""
    ahead, behind = torch.tensor([0.11], dtype=torch.float64), torch.tensor([0.09], dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert published_wga(ahead, 1.0) < published_wga(behind, 1.0)
    assert wga(ahead.log()[None], mask, 1.0) > wga(behind.log()[None], mask, 1.0)


def test_cross_entropy_unlearning_has_the_published_gradient():
    """The target is a constant to the published gradient; ours is the function that has this gradient."""
    logits = torch.randn(2, 5, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [False, True, True, False, False]])
    (got,) = torch.autograd.grad(ce_u(logits, labels, mask), logits)
    target = logits.detach().clone()
    target.scatter_(-1, labels[..., None], -torch.inf)
    expected = cross_entropy(logits[mask], target.softmax(-1)[mask])
    (expected,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(got, expected)


def test_cross_entropy_unlearning_of_one_token_answers_is_a_number():
    """Published code skips an answer's first token even if it is the only one, and averages over nothing."""
    tokens = Tokens.collate([Encoded((1, 2, 3), 2)])
    loss = made("ce_u").forget(llama(), Batch(tokens, tokens))
    labels, mask = tokens.ids[:, 2:], tokens.answer[:, 2:]
    assert float(loss.detach()) == pytest.approx(float(ce_u(answer_logits(llama(), tokens), labels, mask).detach()))


def test_misdirection_asks_for_the_gradients_of_the_trained_weights_alone():
    """Published code thaws every weight again after making its small optimizer, and computes all their gradients."""
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0.mlp.down_proj" in name)
    oracle = LossOracle(model, made("rmu"))
    oracle.batch = full_batch()
    (gradient,) = oracle.gradient(Part.TOTAL)
    assert gradient.shape == model.model.layers[0].mlp.down_proj.weight.shape
    assert all(p.grad is None for p in model.parameters())
