"""What single objectives are in the limits where they meet each other or a closed form, and what only they have."""

from __future__ import annotations

import math

import pytest
import torch

from suite.config.errors import SpecError
from suite.objectives.distillation import ce_u, undial, without_first
from suite.objectives.max_entropy import answer_preservation, uniform_kl
from suite.objectives.misdirection import control_vector
from suite.objectives.preference import dpo, npo, simnpo
from suite.objectives.primal_dual import logit_margin
from suite.objectives.weighted import satimp, wga
from suite.oracle.base import Part
from suite.oracle.loss import LossOracle
from suite.testing.language_model import full_batch
from tests.support.language_model import llama
from tests.support.objectives import made, retain_by_hand


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


def test_dpo_where_the_refusal_has_not_moved_is_npo():
    ratios = torch.tensor([-3.0, 2.0, 0.5], dtype=torch.float64)
    assert float(dpo(torch.zeros(3), ratios, 0.1)) == pytest.approx(float(npo(ratios, torch.zeros(3), 0.1)))


def test_dpo_pushes_refusal_and_answer_apart_by_the_logistic_of_their_margin():
    """d/d winner = -(2/n) sigmoid(-beta margin) = -d/d loser; at the start it is 1/n, whatever beta."""
    winner = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    loser = torch.tensor([0.0, -4.0], dtype=torch.float64, requires_grad=True)
    up, down = torch.autograd.grad(dpo(winner, loser, 0.7), (winner, loser))
    expected = [0.5, 1 / (1 + math.exp(0.7 * 7.0))]
    assert (-up).tolist() == pytest.approx(expected)
    assert down.tolist() == pytest.approx(expected)


def test_answer_preservation_holds_an_answer_the_less_the_likelier_it_is_than_a_refusal():
    answers = torch.tensor([-2.0, -30.0], dtype=torch.float64, requires_grad=True)
    refusals = torch.tensor([-9.0, -8.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(answer_preservation(answers, refusals, 0.5), answers)
    assert (-gradient).tolist() == pytest.approx([0.5 / (1 + math.exp(0.5 * m)) for m in (7.0, -22.0)])


def test_maximum_entropy_is_reached_at_equal_logits_and_only_there():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert float(uniform_kl(torch.full((1, 2, 7), 3.0, dtype=torch.float64), mask)) == pytest.approx(0, abs=1e-12)
    assert float(uniform_kl(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), mask)) > 0.05


def test_weighted_ascent_with_power_zero_is_gradient_ascent():
    scored = torch.tensor([[-0.1, -3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    (gradient,) = torch.autograd.grad(wga(scored, mask, 1e-9), scored)
    assert gradient.tolist()[0] == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (0.5, 0.0), (2.0, 3.0), (1.0, 0.5)])
def test_satimp_is_the_incomplete_beta_function(beta1, beta2):
    from scipy.special import beta, betainc

    p = torch.tensor([[1e-6, 0.2, 0.7, 1.0]], dtype=torch.float64)
    exact = betainc(beta1, beta2 + 1, p.numpy()) * beta(beta1, beta2 + 1)
    got = [float(satimp(p[:, i : i + 1].log(), torch.ones(1, 1, dtype=torch.bool), beta1, beta2)) for i in range(4)]
    assert got == pytest.approx(exact[0].tolist(), rel=1e-9 if beta2 == int(beta2) else 1e-3)


def test_satimp_without_importance_is_weighted_ascent():
    scored, mask = torch.tensor([[-0.3, -2.0]], dtype=torch.float64), torch.tensor([[True, True]])
    assert float(satimp(scored, mask, 1.7, 0.0)) == pytest.approx(float(wga(scored, mask, 1.7)), rel=1e-9)


def test_undial_is_at_rest_where_the_true_tokens_logit_has_been_lowered():
    labels, mask = torch.tensor([[2, 0]]), torch.ones(1, 2, dtype=torch.bool)
    old = torch.randn(1, 2, 5, dtype=torch.float64)
    logits = old.clone()
    logits[0, 0, 2] -= 3.0
    logits[0, 1, 0] -= 3.0
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(undial(old, logits, labels, mask, 3.0), logits)
    assert float(gradient.abs().max()) < 1e-12


def test_cross_entropy_unlearning_is_finite_for_tokens_known_by_heart():
    logits = torch.tensor([[[40.0, 0.0, 0.0], [90.0, 0.0, 0.0]]], requires_grad=True)
    loss = ce_u(logits, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
    assert float(loss.detach()) == pytest.approx((40 + 90) / 2 - math.log(2))  # 1 - p = 2 exp(-z)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, :, 0].tolist() == pytest.approx([0.5, 0.5])


def test_skipping_leaves_every_answer_a_token():
    mask = torch.tensor([[False, True, True, True], [False, False, True, False]])
    assert without_first(mask, 1).tolist() == [[False, False, True, True], [False, False, True, False]]
    assert without_first(mask, 9).sum(-1).tolist() == [1, 1]
    assert torch.equal(without_first(mask, 0), mask)


def test_logit_margin_is_zero_where_logits_are_flat():
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert float(logit_margin(torch.full((1, 1, 9), -4.0), mask)) == 0
    assert float(logit_margin(torch.tensor([[[0.0, 0.0, 3.0]]]), mask)) == pytest.approx(4.0)


def test_the_dual_variable_moves_after_steps_alone_and_never_below_zero():
    model, b = llama(), full_batch()
    objective = made("pdu", retain_weight=0.4, retain_bound=1.0, dual_step=0.25, dual_warmup=1)
    loss = retain_by_hand("nll", model, llama(1), b)
    for _ in range(3):
        objective.retain(model, b)
    assert objective.stepped(model, b) == 0
    assert objective.dual == 0.4
    assert objective.stepped(model, b) == b.retain.size
    assert objective.dual == pytest.approx(0.4 + 0.25 * (loss - 1.0), rel=1e-5)
    assert float(objective.retain(model, b).detach()) == pytest.approx(objective.dual * (loss - 1.0), rel=1e-5)
    loose = made("pdu", retain_weight=0.4, retain_bound=100.0)
    loose.stepped(model, b)
    assert loose.dual == 0.0


def test_a_dual_variable_taken_up_again_goes_on_where_it_stood():
    model, b = llama(), full_batch()
    uninterrupted, first, second = (made("pdu", retain_weight=0.4, dual_step=0.25, dual_warmup=1) for _ in range(3))
    for objective in (uninterrupted, uninterrupted, uninterrupted, first, first):
        objective.stepped(model, b)
    second.load_state_dict(first.state_dict())
    second.stepped(model, b)
    assert second.dual == uninterrupted.dual


def test_the_bound_of_the_retain_loss_has_no_gradient():
    gradients = []
    for bound in (0.0, 5.0):
        oracle = LossOracle(llama(), made("pdu", retain_weight=2.0, retain_bound=bound))
        oracle.batch = full_batch()
        gradients.append(oracle.gradient(Part.RETAIN))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_control_vector_is_a_unit_vector_that_the_seed_decides():
    vector = control_vector(64, 3)
    assert float(vector.norm()) == pytest.approx(1.0)
    assert bool((vector >= 0).all())
    assert torch.equal(vector, control_vector(64, 3))
    assert not torch.equal(vector, control_vector(64, 4))


def test_misdirection_runs_and_moves_nothing_above_its_layer():
    model = llama()
    calls: list[int] = []
    for above in (model.lm_head, model.model.norm, model.model.layers[1]):
        above.register_forward_hook(lambda *_: calls.append(1))
    oracle = LossOracle(model, made("rmu"))
    oracle.batch = full_batch()
    names = [name for name, _ in model.named_parameters()]
    gradient = dict(zip(names, oracle.gradient(), strict=True))
    assert not calls
    for name, g in gradient.items():
        assert bool(g.any()) == (".layers.0." in name or "embed" in name), name
    made("graddiff").forget(model, full_batch())
    assert len(calls) == 3, "the model is whole again"


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(SpecError, match=r"objective\.layer: 2: the model has 2 blocks. Use 0 to 1"):
        made("rmu", layer=2).forget(llama(), full_batch())


def test_a_task_vector_is_subtracted_from_where_training_began():
    before = {"w": torch.tensor([1.0, 2.0]), "kept": torch.tensor([0.1])}
    after = {"w": torch.tensor([1.5, 1.0]), "kept": torch.tensor([0.1]), "new": torch.tensor([7.0])}
    edited = made("task_vector", scale=2.0).edited(before, after)
    assert edited["w"].tolist() == [0.0, 4.0]
    assert torch.equal(edited["kept"], before["kept"])
    assert edited["new"] is after["new"]


def test_a_task_vector_in_bf16_is_rounded_once():
    before, after = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    edited = made("task_vector", scale=3.0).edited({"w": before}, {"w": after})["w"]
    exact = before.double() - 3 * (after.double() - before.double())
    assert edited.dtype is torch.bfloat16
    assert torch.equal(edited, exact.float().to(torch.bfloat16))


def test_training_for_a_task_vector_goes_down_the_forget_loss():
    oracle = LossOracle(llama(), made("task_vector"))
    oracle.batch = full_batch()
    for one, other in zip(oracle.gradient(), oracle.gradient(Part.RELEARN), strict=True):
        torch.testing.assert_close(one, other)
