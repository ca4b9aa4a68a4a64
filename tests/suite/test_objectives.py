"""Objectives against formulas written out, and against each other in the limits where they meet."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from test_oracle import batch, llama

from suite.config.settings import SpecError
from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import hidden_states, mean_nll, sequence_logprobs, token_logprobs
from suite.objectives import OBJECTIVES, Objective, Reference
from suite.objectives.base import token_kl
from suite.objectives.distillation import ce_u, undial, without_first
from suite.objectives.max_entropy import answer_preservation, uniform_kl
from suite.objectives.misdirection import control_vector
from suite.objectives.preference import dpo, npo, simnpo
from suite.objectives.primal_dual import logit_margin
from suite.objectives.weighted import satimp, wga
from suite.oracle.base import Displacement, Part
from suite.oracle.batch import Batch
from suite.oracle.loss import LossOracle


def full_batch(seed: int = 0) -> Batch:
    """A batch with everything that any objective asks for."""
    draw = torch.Generator().manual_seed(100 + seed)

    def texts(lengths: list[tuple[int, int]]) -> Tokens:
        return Tokens.collate(
            [Encoded(tuple(torch.randint(0, 23, (n,), generator=draw).tolist()), start) for n, start in lengths]
        )

    return replace(
        batch(seed),
        forget_refusals=texts([(7, 4), (9, 3), (8, 6)]),
        forget_refusals_reference=torch.tensor([-6.0, -12.0, -5.0], dtype=torch.float64),
        retain_refusals=texts([(7, 5), (9, 2)]),
    )


def made(name: str, **changes: object) -> Objective:
    kind = OBJECTIVES[name]
    if name == "rmu":
        changes = {"layer": 0, **changes}
    return kind(kind.Settings(**changes), Reference(llama(1).requires_grad_(False)))


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
            return float(np.mean(2 / 4.5 * np.log1p(np.exp(4.5 * sums / lengths))))
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


def retains(name: str) -> list[str]:
    own = OBJECTIVES[name].Settings.model_fields["retain"].default
    return ["nll", "kl", *({own} - {"nll"})]


@pytest.mark.parametrize(("name", "retain"), [(name, retain) for name in OBJECTIVES for retain in retains(name)])
def test_losses_by_their_formulas(name, retain):
    model, reference, b = llama(), llama(1), full_batch()
    objective = made(name, retain=retain, retain_weight=0.7, forget_weight=1.3)
    forget, kept = objective.forget(model, b), objective.retain(model, b)
    assert forget.dtype is kept.dtype is torch.float64
    assert forget.shape == kept.shape == ()
    assert float(forget.detach()) == pytest.approx(1.3 * forget_by_hand(name, model, reference, b), rel=1e-5)
    by_hand = retain_by_hand(retain, model, reference, b) - (0.3 if name == "pdu" else 0.0)
    assert float(kept.detach()) == pytest.approx(0.7 * by_hand, rel=1e-4)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_values_and_forward_derivatives_tell_the_same_slope(name):
    """A zeroth-order optimizer goes where a first-order one goes: no part of a loss is hidden from the gradient."""
    warm = {"beta": 0.5} if name == "simnpo" else {}  # at 4.5 these answers are gone, and so is the gradient
    oracle = LossOracle(llama(), made(name, retain_weight=0.7, **warm))
    oracle.batch = full_batch()
    for part in (Part.FORGET, Part.RETAIN):
        gradient = oracle.gradient(part)
        length = float(torch.cat([g.flatten() for g in gradient]).norm())
        way = [g / length for g in gradient]
        ahead, behind = oracle.values(part, [Displacement.along(way, 3e-3), Displacement.along(way, -3e-3)]).tolist()
        assert (ahead - behind) / 6e-3 == pytest.approx(length, rel=0.02)
        assert oracle.directional(part, way) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_hessian_vector_products_are_the_slope_of_the_gradient(name):
    oracle = LossOracle(llama(), made(name))
    oracle.batch = full_batch()
    way = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in oracle.parameters]
    got = torch.cat([h.flatten() for h in oracle.hvp(Part.FORGET, way)])
    ahead, behind = (
        torch.cat([g.flatten() for g in oracle.gradient(Part.FORGET, Displacement.along(way, step))])
        for step in (1e-3, -1e-3)
    )
    assert float((got - (ahead - behind) / 2e-3).norm()) < 0.05 * float(got.norm())


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_position_that_goes_through_the_model_is_paid_for(name):
    model = llama()
    oracle = LossOracle(model, made(name, retain_weight=0.5))
    oracle.batch = full_batch()
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel()))
    for part in (Part.FORGET, Part.RETAIN, Part.TOTAL, Part.RELEARN):
        oracle.gradient(part)
        assert oracle.queries.tokens == sum(seen), part
    oracle.stepped()
    oracle.curvature_sample()
    assert oracle.queries.tokens == sum(seen)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_bf16_models_have_bf16_gradients_of_nearly_the_same_loss(name):
    exact, oracle = LossOracle(llama(), made(name)), LossOracle(llama(dtype=torch.bfloat16), made(name))
    exact.batch = oracle.batch = full_batch()
    assert all(g.dtype is torch.bfloat16 for g in oracle.gradient())
    (rounded,), (value,) = (asked.values(Part.FORGET, [None]).tolist() for asked in (oracle, exact))
    assert rounded == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_model_may_be_any_callable(name):
    model, b = llama(), full_batch()
    objective = made(name)

    def plain(input_ids: torch.Tensor, use_cache: bool, output_hidden_states: bool = False) -> SimpleNamespace:
        out = model(input_ids=input_ids, use_cache=use_cache, output_hidden_states=output_hidden_states)
        return SimpleNamespace(logits=out.logits, hidden_states=out.hidden_states)

    for loss in (objective.forget, objective.retain):
        assert float(loss(plain, b).detach()) == pytest.approx(float(loss(model, b).detach()), rel=1e-6)


def test_only_objectives_that_ask_the_old_model_in_every_step_keep_it():
    needing = {name for name, kind in OBJECTIVES.items() if kind.needs_reference(kind.Settings())}
    assert needing == {"undial", "rmu"}
    for kind in OBJECTIVES.values():
        assert kind.needs_reference(kind.Settings(retain="kl", retain_weight=1.0))
    rmu = OBJECTIVES["rmu"]
    assert not rmu.needs_reference(rmu.Settings(retain_weight=0.0))
    assert not rmu.needs_reference(rmu.Settings(retain="nll"))


def test_likelihoods_are_those_of_unpadded_texts():
    model, tokens = llama(), batch().forget
    expected = logprobs(unpadded(model, tokens))
    assert sequence_logprobs(model, tokens).tolist() == pytest.approx([e.sum() for e in expected], abs=1e-5)
    assert float(mean_nll(model, tokens).detach()) == pytest.approx(-np.concatenate(expected).mean(), abs=1e-6)


def test_log_probabilities_are_summed_in_float64():
    logits = torch.randn(1, 3, 5)
    assert token_logprobs(logits, torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)).dtype is torch.float64


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
    whole, first, second = (made("pdu", retain_weight=0.4, dual_step=0.25, dual_warmup=1) for _ in range(3))
    for objective in (whole, whole, whole, first, first):
        objective.stepped(model, b)
    second.load_state_dict(first.state_dict())
    second.stepped(model, b)
    assert second.dual == whole.dual


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


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_hidden_states_are_those_of_the_named_block(family):
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    b = batch().forget
    if family == "llama":
        model = llama()
    elif family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    else:
        model = OPTForCausalLM(
            OPTConfig(vocab_size=23, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2)
        ).eval()
    out = model(input_ids=b.ids, output_hidden_states=True)
    got = [hidden_states(model, b, layer).detach() for layer in (0, 1)]
    torch.testing.assert_close(got[0], out.hidden_states[1])
    norm = {"llama": "model.norm", "gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm"}[family]
    torch.testing.assert_close(model.get_submodule(norm)(got[1]), out.hidden_states[2])


def test_text_is_everything_but_padding():
    tokens = Tokens.collate([Encoded((5, 0, 7), 1), Encoded((0, 1, 2, 0, 0), 2)])
    assert tokens.text.tolist() == [[True, True, True, False, False], [True] * 5]


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
    for _ in range(3):  # forget and retain texts in turn, as a step with both parts does
        assert torch.equal(reference.logits(b.retain), reference.logits(b.retain))
        reference.logits(b.forget)
    assert len(calls) == 2
    reference.logits(batch(1).retain)
    assert len(calls) == 3


def test_an_answer_without_a_prompt_loses_its_first_token_only():
    assert Tokens.collate([Encoded((5, 6, 7), 1)]).answer.tolist() == [[False, True, True]]
