"""Statistics of a weight update, against numpy and against published orders of magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suite.attacks.weights.quantization import round_to_nearest
from suite.oracle import noise
from suite.oracle.base import Displacement, Diverged, Oracle, Part
from suite.oracle.directions import LazyTensors
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.training.weight_change import change, flipped
from suite.trials.run import run_trial
from tests.support.language_model import llama, oracle, weights
from tests.support.small import SMALL


def codes(weight: np.ndarray, bits: int, group: int | None = None) -> np.ndarray:
    """Row by row, block by block."""
    levels = 2 ** (bits - 1) - 1
    out = np.zeros(weight.shape)
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], group or weight.shape[1]):
            block = weight[row, start : start + (group or weight.shape[1])]
            if (scale := np.abs(block).max() / np.float32(levels)) > 0:
                out[row, start : start + len(block)] = np.round(block / scale)
    return out


def bf16(weight: np.ndarray) -> np.ndarray:
    """The upper half of the fp32 bits, rounded to even."""
    bits = weight.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def moved(model: torch.nn.Module, size: float, seed: int = 5) -> None:
    """Every weight by `size` at most; some not at all."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            step = (torch.rand(p.shape, generator=draw) - 0.5) * 2 * size
            p.add_(step * (torch.rand(p.shape, generator=draw) < 0.7))


def linear(name: str) -> bool:
    return name.endswith("_proj.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_change_agrees_with_numpy(dtype, size):
    model = llama(dtype=dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved(model, size)
    got = change(before, model)
    pairs = {n: (before[n].float().numpy(), p.detach().float().numpy()) for n, p in model.named_parameters()}
    total = sum(b.size for b, _ in pairs.values())
    square = sum(((a.astype(np.float64) - b) ** 2).sum() for b, a in pairs.values())
    assert got.change_norm == pytest.approx(square**0.5, rel=1e-12)
    assert got.changed_share == sum((a != b).sum() for b, a in pairs.values()) / total
    assert got.changed_share_bf16 == sum((bf16(a) != bf16(b)).sum() for b, a in pairs.values()) / total
    matrices = [pair for name, pair in pairs.items() if linear(name)]
    assert len(matrices) == 14
    for bits, share in ((4, got.flipped_share_4bit), (8, got.flipped_share_8bit)):
        flips = sum((codes(a, bits) != codes(b, bits)).sum() for b, a in matrices)
        assert share == flips / sum(b.size for b, _ in matrices)
    assert got.flipped_share_4bit < got.flipped_share_8bit


def test_no_change_is_zero_everywhere():
    model = llama()
    got = change({name: p.detach().clone() for name, p in model.named_parameters()}, model)
    assert (
        got.change_norm,
        got.changed_share,
        got.changed_share_bf16,
        got.flipped_share_4bit,
        got.flipped_share_8bit,
    ) == (0, 0, 0, 0, 0)


def test_without_a_linear_layers_weights_no_code_can_flip():
    model = llama()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "norm" in name or "embed" in name}
    got = change(before, model)
    assert (got.flipped_share_4bit, got.flipped_share_8bit) == (None, None)


def test_sizes_of_update_that_survive_rounding():
    """N(0, 0.02) weights that all change by 1e-5: about 15 % differ in bf16, and about 0.1 % and 2.3 % of the 4-bit and
    8-bit codes (groups of 128) flip. Ten times the change flips ten times as many."""
    draw = torch.Generator().manual_seed(0)
    before = 0.02 * torch.randn(512, 4096, generator=draw)
    step = 1e-5 * (torch.randint(0, 2, before.shape, generator=draw) * 2 - 1)

    def share(factor: int, bits: int) -> float:
        return flipped(before, before + factor * step, bits, group=128) / before.numel()

    rounded = before.bfloat16()
    assert float(((rounded.float() + step).bfloat16() != rounded).float().mean()) == pytest.approx(0.15, abs=0.03)
    assert 0.0005 < share(1, 4) < 0.003
    assert 0.01 < share(1, 8) < 0.04
    assert share(10, 4) == pytest.approx(10 * share(1, 4), rel=0.2)


@pytest.mark.parametrize(("bits", "group"), [(4, None), (8, None), (3, 5), (4, 0)])
def test_a_code_flips_where_the_quantized_weights_differ_in_units_of_their_own_scale(bits, group):
    """Against the attack itself: its grid points divided by their spacing."""
    draw = torch.Generator().manual_seed(1)
    before = torch.randn(6, 13, generator=draw)
    after = before + 0.05 * torch.randn(6, 13, generator=draw)

    def units(weight: torch.Tensor) -> np.ndarray:
        points, w, levels = round_to_nearest(weight, bits, group).numpy(), weight.numpy(), 2 ** (bits - 1) - 1
        size = group or 13
        out = np.zeros(points.shape)
        for start in range(0, 13, size):
            part = w if group == 0 else w[:, start : start + size]
            largest = np.abs(part).max(axis=None if group == 0 else 1, keepdims=True)
            out[:, start : start + size] = np.round(points[:, start : start + size] / largest * levels)
        return out

    assert flipped(before, after, bits, group) == (units(before) != units(after)).sum() > 0


def test_a_rows_largest_weight_takes_the_others_codes_with_it():
    before = torch.tensor([[0.7, 0.3, 0.0, -0.3]])
    after = torch.tensor([[1.4, 0.3, 0.0, -0.3]])
    assert flipped(before, after, 4) == 2  # +-0.3 were +-3 steps of 0.1, and are +-2 (1.5, to even) of 0.2
    assert flipped(torch.zeros(2, 3), torch.zeros(2, 3), 4) == 0


class InPlace:
    """An oracle that adds and subtracts displacements in the weights themselves."""

    def __init__(self, inner):
        self.inner, self.parameters = inner, inner.parameters

    @torch.no_grad()
    def values(self, part, displacements):
        (displacement,) = displacements
        ((scale, direction),) = displacement.terms
        for factor in (scale, -2 * scale, scale):
            for p, d in zip(self.parameters, direction, strict=True):
                p.add_(d.to(p.dtype), alpha=factor)
        return self.inner.values(part, [None])


PROBE_RADIUS = 1e-3
"""Root-mean-square displacement of MeZO (arXiv 2305.17333)."""


@torch.no_grad()
def drift(oracle: Oracle, seed: int) -> float:
    """Share of the weights that differ, bit for bit, after one loss evaluation at displaced weights.

    It is 0 where the weights never move. Adding and subtracting a displacement in place changes about half of them by
    rounding: an unintended random walk.

    Raises:
        Diverged: the value is not finite.
    """
    before = [parameter.detach().to("cpu", copy=True) for parameter in oracle.parameters]

    def direction(index: int) -> torch.Tensor:
        return noise.gaussian([oracle.parameters[index]], (seed, 0x0D21F7, index))[0]

    oracle.values(Part.TOTAL, [Displacement.along(LazyTensors(len(before), direction), PROBE_RADIUS)])
    changed = 0
    for old, now in zip(before, oracle.parameters, strict=True):
        bits = [tensor.detach().cpu().reshape(-1, 1).view(torch.uint8) for tensor in (old, now)]
        changed += int((bits[0] != bits[1]).any(1).sum())
    return changed / sum(old.numel() for old in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drift_is_zero_where_weights_come_back_and_about_half_where_they_are_moved_in_place(dtype):
    loss_oracle = oracle(dtype=dtype)
    before = weights(loss_oracle)
    assert drift(loss_oracle, seed=0) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(loss_oracle), strict=True))
    assert 0.2 < drift(InPlace(loss_oracle), seed=0) < 0.7


def test_drift_asks_once_in_the_neighbourhood_for_the_whole_loss():
    class Spy(InPlace):
        def values(self, part, displacements):
            assert part is Part.TOTAL
            ((scale, direction),) = displacements[0].terms
            self.radius = scale * torch.cat([d.flatten() for d in direction]).square().mean().sqrt()
            return self.inner.values(part, displacements)

    spy = Spy(oracle())
    drift(spy, seed=0)
    assert float(spy.radius) == pytest.approx(1e-3, rel=0.05)
    assert spy.inner.queries.value == 1


def test_drift_of_weights_whose_loss_is_not_finite_is_not_known():
    loss_oracle = oracle()
    with torch.no_grad():
        loss_oracle.parameters[0].fill_(float("nan"))
    with pytest.raises(Diverged):
        drift(loss_oracle, seed=0)


@pytest.fixture
def store(warm_store, tmp_path):
    import shutil

    shutil.copytree(warm_store, tmp_path / "store")
    return Store(tmp_path / "store")


def test_the_statistics_are_in_the_trials_row_and_the_probe_is_not_in_its_cost(store):
    row = run_trial(trial(SMALL), store, measure=MeasureSpec(attacks=(), limit=2)).row
    assert 0 < row["flipped_share_4bit"] < row["flipped_share_8bit"] <= 1
    assert 0 < row["changed_share_bf16"] <= row["changed_share"]
    assert (row["value_calls"], row["adapter"]) == (0, "full")
    assert row["drowned"] is None


def test_a_run_that_diverged_has_no_statistics_of_its_update(store):
    spec = trial(merged(SMALL, {"optimizer": {"name": "sgd", "lr": 1e30}, "objective": {"name": "gradient_ascent"}}))
    row = run_trial(spec, store, measure=MeasureSpec(attacks=(), limit=2)).row
    assert row["status"] == "diverged"
    assert [row[name] for name in ("change_norm", "flipped_share_4bit", "flipped_share_8bit")] == [None] * 3
