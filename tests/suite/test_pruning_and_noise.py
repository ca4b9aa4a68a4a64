"""Pruning by brute force over sorted scores; noise by its statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from suite.attacks import AttackContext, attack
from suite.attacks.weights.pruning import least, smallest_zeroed, wanda
from suite.config.errors import SpecError
from suite.models.layers import is_linear
from tasks.task import Split

SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


def attacked(scene, **settings_):
    """The weights before and after."""
    subject, context = scene
    ((_, after),) = attack(settings_).apply(subject, context)
    return subject.checkpoint.state(), after.checkpoint.state()


# Pruning


@settings(max_examples=150, deadline=None)
@given(arrays(np.float32, (3, 8), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])), SHARES)
def test_the_least_are_the_first_of_a_stable_sort(scores, share):
    """Brute force, with ties all over."""
    count = round(share * 8)
    want = np.zeros((3, 8), bool)
    for row in range(3):
        want[row, sorted(range(8), key=lambda i: scores[row, i])[:count]] = True
    assert np.array_equal(least(torch.from_numpy(scores), share), want)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), SHARES, st.integers(0, 10**6))
def test_magnitudes_compare_within_a_layer_and_wandas_scores_within_an_output(rows, columns, sparsity, seed):
    draw = np.random.default_rng(seed)
    weight, norms = draw.normal(size=(rows, columns)), draw.exponential(size=columns)
    smallest = weight.copy().ravel()
    smallest[np.argsort(np.abs(smallest))[: round(sparsity * weight.size)]] = 0
    got = smallest_zeroed(torch.from_numpy(weight), sparsity)
    assert np.array_equal(got, smallest.reshape(rows, columns))
    scored = weight.copy()
    for row in scored:
        row[np.argsort(np.abs(row) * norms)[: round(sparsity * columns)]] = 0
    assert np.array_equal(wanda(torch.from_numpy(weight), torch.from_numpy(norms), sparsity), scored)


@pytest.mark.parametrize("sparsity", [0.1, 0.33, 0.5, 1.0])
def test_so_many_weights_are_zero_and_all_else_stays(scene, sparsity):
    for by, more in (("magnitude", {}), ("wanda", {"samples": 3})):
        before, after = attacked(scene, name="prune", by=by, sparsity=sparsity, **more)
        for name, weight in before.items():
            if not is_linear(name, weight):
                assert torch.equal(after[name], weight)
                continue
            gone = after[name] == 0
            assert torch.equal(after[name], weight.masked_fill(gone, 0))
            if by == "magnitude":
                assert gone.sum() == round(sparsity * weight.numel())
            else:
                assert gone.sum(1).eq(round(sparsity * weight.shape[1])).all()


def test_wanda_in_a_model_scores_what_its_layers_were_given(scene):
    """The one block's query weights, from inputs that a plain hook sees."""
    subject, context = scene
    before, after = attacked(scene, name="prune", by="wanda", sparsity=0.5, texts="forget", samples=520)
    model, given_, name = subject.checkpoint.model(), [], "model.layers.0.self_attn.q_proj"
    model.get_submodule(name).register_forward_hook(lambda _, args, __: given_.append(args[0].detach()[0]))
    with torch.no_grad():
        for text in context.forget:
            model(torch.tensor([context.encoder.example(text).ids]))
    scores = before[f"{name}.weight"].abs() * torch.cat(given_).norm(dim=0)
    kept = after[f"{name}.weight"] != 0
    rows = range(len(scores))
    assert all(scores[i][kept[i]].min() >= scores[i][~kept[i]].max() * (1 - 1e-5) for i in rows)
    _, by_size = attacked(scene, name="prune", by="magnitude", sparsity=0.5)
    assert not torch.equal(after[f"{name}.weight"], by_size[f"{name}.weight"])


def test_magnitude_has_no_texts_to_choose(scene):
    with pytest.raises(SpecError, match="samples: by=magnitude reads no texts"):
        attack({"name": "prune", "by": "magnitude", "sparsity": 0.5, "samples": 3})
    subject, context = scene
    magnitude = attack({"name": "prune", "by": "magnitude", "sparsity": 0.5})
    assert magnitude.reads(subject.probes, context) == {}
    magnitude.check(context.task, Split.TEST)
    with pytest.raises(SpecError, match="has only 520 forget texts"):
        attack({"name": "prune", "by": "wanda", "sparsity": 0.5, "texts": "forget", "samples": 521}).check(
            context.task, Split.TEST
        )


# Noise


def test_noise_has_the_size_that_was_asked_for_in_every_tensor(scene):
    """The change over rms(w) is sigma z: its mean square and mean agree within four standard errors."""
    before, after = attacked(scene, name="noise", sigma=0.1)
    changes = []
    for name, weight in before.items():
        if not is_linear(name, weight):
            assert torch.equal(after[name], weight)
            continue
        z = (after[name] - weight).double() / weight.double().square().mean().sqrt() / 0.1
        n = z.numel()
        assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / n)
        assert abs(float(z.mean())) < 4 / math.sqrt(n)
        changes.append(z.flatten()[:1024])
    correlations = torch.corrcoef(torch.stack(changes)).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / math.sqrt(1024)  # each tensor has its own noise


def test_seeds_differ_and_sigma_is_a_factor_of_the_same_noise(scene):
    name = "model.layers.0.mlp.up_proj.weight"
    before, one = attacked(scene, name="noise", sigma=0.1)
    _, again = attacked(scene, name="noise", sigma=0.1)
    _, other = attacked(scene, name="noise", sigma=0.1, seed=1)
    _, twice = attacked(scene, name="noise", sigma=0.2)
    subject, context = scene
    later = AttackContext(context.engine, context.encoder, context.task, 1, context.device)
    _, elsewhere = attacked((subject, later), name="noise", sigma=0.1)
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], elsewhere[name])
    torch.testing.assert_close(twice[name] - before[name], 2 * (one[name] - before[name]), rtol=1e-3, atol=1e-6)


def test_without_strength_it_is_the_subject_itself(scene):
    subject, context = scene
    for settings_ in (
        {"name": "noise", "sigma": 0.0},
        {"name": "prune", "by": "magnitude", "sparsity": 0.0},
        {"name": "prune", "by": "wanda", "sparsity": 0.0},
    ):
        ((_, after),) = attack(settings_).apply(subject, context)
        assert after is subject
