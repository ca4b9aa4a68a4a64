"""Every objective against its written-out formula, and properties that all objectives share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import hidden_states, mean_nll, sequence_logprobs, token_logprobs
from suite.objectives import OBJECTIVES, Reference
from suite.objectives.base import token_kl
from suite.oracle.base import Displacement, Part
from suite.oracle.loss import LossOracle
from tests.support.language_model import batch, llama
from tests.support.objectives import forget_by_hand, full_batch, logprobs, made, retain_by_hand, unpadded


def retains(name: str) -> list[str]:
    own = OBJECTIVES[name].Settings.model_fields["retain"].default
    return ["nll", "kl", *({own} - {"nll"})]


@pytest.mark.parametrize(("name", "retain"), [(name, retain) for name in OBJECTIVES for retain in retains(name)])
def test_losses_by_their_formulas(name, retain):
    model, reference, b = llama(), llama(1), full_batch()
    objective = made(name, retain=retain, retain_weight=0.7, forget_weight=1.3)
    forget, retain_loss = objective.forget(model, b), objective.retain(model, b)
    assert forget.dtype is retain_loss.dtype is torch.float64
    assert forget.shape == retain_loss.shape == ()
    assert float(forget.detach()) == pytest.approx(1.3 * forget_by_hand(name, model, reference, b), rel=1e-5)
    by_hand = retain_by_hand(retain, model, reference, b) - (0.3 if name == "pdu" else 0.0)
    assert float(retain_loss.detach()) == pytest.approx(0.7 * by_hand, rel=1e-4)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_values_and_forward_derivatives_tell_the_same_slope(name):
    """Zeroth- and first-order optimizers minimize the same function: no part of a loss is missing from the gradient."""
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
    (rounded,), (value,) = (each.values(Part.FORGET, [None]).tolist() for each in (oracle, exact))
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
