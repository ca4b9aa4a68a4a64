"""Every objective against its written-out formula, what all of them do, and the likelihoods that they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import hidden_states, mean_nll, sequence_logprobs, token_logprobs
from suite.objectives import OBJECTIVES, Reference
from suite.objectives.base import token_kl
from suite.testing import ObjectiveConformance
from suite.testing.language_model import full_batch
from tests.support.language_model import batch, llama
from tests.support.objectives import forget_by_hand, logprobs, made, retain_by_hand, unpadded


class TestEveryObjective(ObjectiveConformance):
    entries = OBJECTIVES.values()
    test_it_moves_a_model_with_an_optimizer_of_each_grade = None  # every pair is in test_conformance.py


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


def test_only_objectives_that_ask_the_old_model_in_every_step_keep_it():
    needing = {name for name, kind in OBJECTIVES.items() if kind.needs_reference(kind.Settings())}
    assert needing == {"undial", "rmu"}
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
