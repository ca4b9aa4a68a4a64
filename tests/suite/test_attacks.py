"""Attacks: the quantizer by brute force, relearning by plain training, and attacks that must change nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.attacks import ATTACKS, attack
from suite.attacks.weights.quantization import round_to_nearest
from suite.config.errors import SpecError
from suite.models.layers import is_linear
from suite.testing import AttackConformance


class TestEveryAttack(AttackConformance):
    entries = ATTACKS.values()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 8), st.sampled_from([None, 0, 2, 4]), st.integers(0, 10**6))
def test_rounding_takes_the_nearest_point_of_the_grid(rows, columns, bits, group, seed):
    """Brute force in float64: every weight against every point of its group's grid."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    got = round_to_nearest(torch.from_numpy(weight), bits, group).numpy()
    levels = 2 ** (bits - 1) - 1
    width = columns if group is None else group
    for row in range(rows):
        for column in range(columns):
            block = weight if group == 0 else weight[row, column // width * width : (column // width + 1) * width]
            grid = np.abs(block).max() / levels * np.arange(-levels, levels + 1)
            distance = np.abs(grid - weight[row, column])
            assert abs(got[row, column] - weight[row, column]) <= distance.min() + 1e-5
            assert np.abs(grid - got[row, column]).min() < 1e-5


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.sampled_from([None, 0, 4]), st.integers(0, 10**6))
def test_rounding_twice_is_rounding_once(bits, group, seed):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    once = round_to_nearest(weight, bits, group)
    torch.testing.assert_close(round_to_nearest(once, bits, group), once, rtol=0, atol=1e-6)


def test_zeros_stay_zeros_and_dtypes_stay():
    assert round_to_nearest(torch.zeros(2, 3), 4).eq(0).all()
    assert round_to_nearest(torch.randn(2, 3).bfloat16(), 4).dtype is torch.bfloat16


def test_only_linear_layers_are_quantized(scene):
    subject, context = scene
    ((_, attacked),) = attack({"name": "rtn", "bits": 3}).apply(subject, context)
    before, after = subject.checkpoint.state(), attacked.checkpoint.state()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, weight in before.items() if is_linear(name, weight)}
    assert all("proj" in name for name in changed)
    for name in changed:
        for row in after[name]:
            assert len(row.unique()) <= 7  # 2^3 - 1 levels


def test_relearning_is_plain_fine_tuning_on_the_drawn_texts(scene):
    """The same steps by hand: torch's AdamW, clipped gradients, the same draws."""
    subject, context = scene
    settings_ = {"name": "relearn", "samples": 3, "steps": 2, "lr": 1e-3, "batch_size": 3, "seed": 5}
    ((point, attacked),) = attack(settings_).apply(subject, context)
    assert point == 2
    draw = random.Random("0:5")
    texts = [context.encoder.example(e) for e in draw.sample(context.forget, 3)]
    model = subject.checkpoint.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        total, count = 0.0, 0
        for text in texts:
            logits = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
            for place in range(text.start, len(text.ids)):
                total = total - logits[place - 1, text.ids[place]]
                count += 1
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(attacked.checkpoint.state()[name], weight, rtol=1e-3, atol=2e-5)


def test_a_relearning_curve_is_one_run_seen_at_several_points(scene):
    subject, context = scene
    curve = attack({"name": "relearn", "samples": 4, "steps": 6, "lr": 1e-3, "points": 3})
    assert curve.points == (2, 4, 6)
    found = dict(curve.apply(subject, context))
    ((_, single_run),) = attack({"name": "relearn", "samples": 4, "steps": 6, "lr": 1e-3}).apply(subject, context)
    assert list(found) == [2, 4, 6]
    for name, weight in single_run.checkpoint.state().items():
        assert torch.equal(found[6].checkpoint.state()[name], weight)
    assert not torch.equal(*[next(iter(found[p].checkpoint.state().values())) for p in (2, 6)])


def test_attacks_of_no_strength_change_nothing(scene):
    subject, context = scene
    for settings_ in ({"name": "none"}, {"name": "relearn", "samples": 1, "steps": 0, "lr": 1e-3}):
        ((point, attacked),) = attack(settings_).apply(subject, context)
        assert point == 0
        for name, weight in subject.checkpoint.state().items():
            assert torch.equal(attacked.checkpoint.state()[name], weight)


def test_more_texts_than_there_are_is_refused(scene):
    with pytest.raises(SpecError, match="only 520 forget"):
        list(attack({"name": "relearn", "samples": 10**6, "steps": 1, "lr": 1e-3}).apply(*scene))
