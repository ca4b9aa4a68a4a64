"""bf16 weights: queries leave every bit alone, displacements are summed in fp32, and trials run from end to end."""

from __future__ import annotations

import shutil

import pytest
import torch

from suite.objectives import OBJECTIVES
from suite.optimizers import Run
from suite.oracle.base import Displacement, Part, norm
from suite.oracle.directions import LazyTensors, LowRank
from suite.oracle.loss import LossOracle
from suite.smoothing import SMOOTHINGS
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.trials.run import run_trial
from tests.support.language_model import batch, direction, llama, oracle, same_bits, weights
from tests.support.small import SMALL

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["dense", "lazy", "low_rank"])
def test_values_nearby_leave_every_bit_alone(kind, dtype):
    loss_oracle = oracle(dtype=dtype)
    dense = direction(loss_oracle)
    way = {
        "dense": dense,
        "lazy": LazyTensors(len(dense), dense.__getitem__),
        "low_rank": LowRank(loss_oracle.parameters, 2, (1,)),
    }
    before = weights(loss_oracle)
    for part in Part:
        loss_oracle.values(part, [Displacement.along(way[kind], 1e-3), None, Displacement.along(way[kind], -1e-3)])
    assert same_bits(before, weights(loss_oracle))


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_elsewhere_leave_every_bit_alone(dtype):
    loss_oracle = oracle(dtype=dtype)
    way = [w.to(dtype) for w in direction(loss_oracle)]
    there = Displacement.along(way, 1e-3)
    before = weights(loss_oracle)
    for part in Part:
        loss_oracle.gradient(part, there)
        loss_oracle.hvp(part, way, there)
        loss_oracle.directional(part, way, there)
    loss_oracle.curvature_sample()
    assert same_bits(before, weights(loss_oracle))


@pytest.mark.parametrize("radius", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float32, 0.35, 0.60), (torch.bfloat16, 0.30, 0.60)])
def test_published_code_that_probes_in_place_leaves_about_half_of_the_weights_changed(dtype, low, high, radius):
    """+r, -2r, +r on N(0, 0.02) weights: each sum is rounded, and they do not cancel."""
    draw = torch.Generator().manual_seed(0)
    before = (0.02 * torch.randn(300_000, generator=draw)).to(dtype)
    way = torch.randn(300_000, generator=draw).to(dtype)
    after = before.clone()
    for scale in (radius, -2 * radius, radius):
        after.add_(way, alpha=scale)
    assert low < float((after != before).float().mean()) < high


def test_sharpness_awares_place_is_summed_in_fp32_and_rounded_once():
    """Each weight at which the forget loss is evaluated is a nearest bf16 number to w + rho g / |g|."""
    seen: list[list[torch.Tensor]] = []

    class Spy(OBJECTIVES["gradient_ascent"]):
        def forget_loss(self, model, batch):
            seen.append([p.detach().clone() for p in model.parameters()])
            return super().forget_loss(model, batch)

    loss_oracle = LossOracle(llama(dtype=torch.bfloat16), Spy(Spy.Settings()))
    loss_oracle.batch = batch()
    ascent = loss_oracle.gradient(Part.FORGET)
    seen.clear()
    kind = SMOOTHINGS["sam"]
    kind(loss_oracle, kind.Settings(rho=0.05), Run(1)).gradient(Part.FORGET)
    here, there = seen
    length, moved = float(norm(ascent)), 0
    for w, g, place in zip(here, ascent, there, strict=True):
        exact = w.double() + 0.05 / length * g.double()
        up = torch.nextafter(place, torch.full_like(place, torch.inf)).double()
        down = torch.nextafter(place, torch.full_like(place, -torch.inf)).double()
        # fp32's own rounding of the sum is 2^-16 of a step between bf16 numbers.
        slack = (up - down) * 2.0**-15
        assert bool((exact <= (place.double() + up) / 2 + slack).all())
        assert bool((exact >= (place.double() + down) / 2 - slack).all())
        moved += int((place != w).sum())
    assert moved > 0


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that the bf16 trials share, anchors included."""
    root = tmp_path_factory.mktemp("bf16")
    yield Store(root)
    shutil.rmtree(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adam", "lr": 1e-3}},
        {"optimizer": {"name": "zo_sgd", "lr": 1e-2}},
        {"optimizer": {"name": "adam", "lr": 1e-3}, "smoothing": {"name": "sam"}},
        {"optimizer": {"name": "adam", "lr": 1e-2}, "adapter": {"name": "lora"}},
        {"optimizer": {"name": "adam", "lr": 1e-2}, "adapter": {"name": "bounded"}},
    ],
    ids=["adam", "zo_sgd", "sam", "lora", "bounded"],
)
def test_a_bf16_trial_runs_from_end_to_end(store, changes):
    spec = trial(merged(SMALL, {"model": {"dtype": "bfloat16"}, "steps": 2, **changes}))
    result = run_trial(spec, store, measure=MeasureSpec(attacks=(), limit=2))
    row = result.row
    assert (row["status"], row["dtype"], row["steps_done"]) == ("ok", "bfloat16", 2)
    assert 0 < row["changed_share"] <= 1
    assert row["changed_share_bf16"] == row["changed_share"]
    assert {m["dtype"] for m in result.measurements} == {"bfloat16"}
