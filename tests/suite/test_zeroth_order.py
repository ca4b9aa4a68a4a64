"""Zeroth-order optimizers against their formulas in numpy, line by line, along the same directions."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from suite.config.settings import parse
from suite.optimizers import OPTIMIZERS, Optimizer, Run
from suite.optimizers.estimates import Differences, RandomDirections, ZerothOrder
from suite.optimizers.hybrid import Hybrid
from suite.optimizers.zeroth_order import (
    ZOSGD,
    ForwardGradient,
    RAdaZO,
    RAdaZOCode,
    ZOAdam,
    ZOConservative,
    ZOMuon,
    ZOSignSGD,
    ZOSlopeSign,
)
from suite.oracle.base import Displacement, Metered, Part
from suite.oracle.directions import Directions
from tests.support.language_model import oracle as language_model
from tests.support.language_model import same_bits, weights
from tests.support.quadratic import Quadratic

SEED = 5
LR = 0.01
ZO = ZerothOrder(samples=3, radius=0.1)


class Reference:
    """Slopes and estimates in float64, along the directions that an optimizer of this seed draws."""

    def __init__(self, quadratic: Quadratic, zo: ZerothOrder = ZO) -> None:
        self.f, self.zo, self.drawn = quadratic.f, zo, 0
        self.directions = Directions(zo.direction, quadratic.parameters, SEED, memory="seed")

    def along(self) -> np.ndarray:
        """The next directions, (samples, d)."""
        numbers = range(self.drawn, self.drawn + self.zo.samples)
        self.drawn = numbers.stop
        drawn = [self.directions(number) for number in numbers]
        return np.stack([d.factor * torch.cat([t.flatten() for t in d.tensors]).double().numpy() for d in drawn])

    def value(self, x: np.ndarray) -> float:
        return float(self.f(torch.from_numpy(x)))

    def slopes(self, x: np.ndarray, us: np.ndarray) -> np.ndarray:
        r = self.zo.radius
        if self.zo.difference == "forward":
            return np.array([(self.value(x + r * u) - self.value(x)) / r for u in us])
        return np.array([(self.value(x + r * u) - self.value(x - r * u)) / (2 * r) for u in us])

    def estimate(self, x: np.ndarray) -> np.ndarray:
        us = self.along()
        return sum(s * u for s, u in zip(self.slopes(x, us), us, strict=True)) / len(us)


Step = Callable[[Reference, np.ndarray, dict, int], np.ndarray]


def plain(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    return x - LR * of.estimate(x)


def momentum(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    memory["m"] = 0.9 * memory.get("m", 0) + of.estimate(x)
    return x - LR * memory["m"]


def sign(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    return x - LR * np.sign(of.estimate(x))


def slope_sign(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    us = of.along()
    return x - LR * np.mean(np.sign(of.slopes(x, us))[:, None] * us, axis=0)


def adam(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    g = of.estimate(x)
    m = memory["m"] = 0.8 * memory.get("m", 0) + 0.2 * g
    v = memory["v"] = 0.95 * memory.get("v", 0) + 0.05 * g**2
    return x - LR * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)


def r_adazo(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    m = memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * of.estimate(x)
    v = memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * m**2
    return x - LR * m / np.sqrt(v + 1e-8)


def r_adazo_code(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    m = memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * of.estimate(x)
    v = memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * m**2
    return x - LR * m / (np.sqrt(v) + 0.05)


def conservative(of: Reference, x: np.ndarray, memory: dict, t: int) -> np.ndarray:
    g = of.estimate(x)
    return min([x, x - LR * g, x + LR * g], key=of.value)


FORWARD = ZerothOrder(samples=3, radius=0.1, difference="forward")
RADEMACHER = ZerothOrder(samples=2, radius=0.1, direction="rademacher")
SPHERES = ZerothOrder(samples=2, radius=0.1, direction="tensor_sphere", difference="forward")
BY_THE_LINE = {
    "sgd": (ZOSGD.Settings(lr=LR, zo=ZO), plain),
    "sgd-forward": (ZOSGD.Settings(lr=LR, zo=FORWARD), plain),
    "sgd-signs": (ZOSGD.Settings(lr=LR, zo=RADEMACHER), plain),
    "sgd-momentum": (ZOSGD.Settings(lr=LR, momentum=0.9, zo=ZO), momentum),
    "sign": (ZOSignSGD.Settings(lr=LR, zo=ZO), sign),
    "slope_sign": (ZOSlopeSign.Settings(lr=LR, zo=ZO), slope_sign),
    "adam": (ZOAdam.Settings(lr=LR, betas=(0.8, 0.95), eps=1e-6, zo=ZO), adam),
    "r_adazo": (RAdaZO.Settings(lr=LR, zo=ZO), r_adazo),
    "r_adazo_code": (RAdaZOCode.Settings(lr=LR, eps=0.05, zo=SPHERES), r_adazo_code),
    "conservative": (ZOConservative.Settings(lr=LR, zo=ZO), conservative),
}


def of(settings, quadratic: Quadratic, steps: int = 12) -> Optimizer:
    return OPTIMIZERS[settings.name](settings, quadratic.parameters, Run(steps, SEED))


@pytest.mark.parametrize("name", list(BY_THE_LINE))
def test_every_step_is_its_formula(name):
    """In each of twelve steps, from the optimizer's own weights, with the reference's own averages."""
    settings, step = BY_THE_LINE[name]
    quadratic = Quadratic()
    optimizer, reference, memory = of(settings, quadratic), Reference(quadratic, settings.zo), {}
    for t in range(1, 13):
        expected = step(reference, quadratic.x.numpy(), memory, t)
        optimizer.step(quadratic)
        np.testing.assert_allclose(quadratic.x.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(
    ("directions", "rank"),
    [
        ({"direction": "low_rank", "rank": 3, "keep": 2}, lambda samples, size: 3),
        ({"direction": "low_rank", "rank": 2}, lambda samples, size: 2 * samples),
        ({}, lambda samples, size: size),
    ],
    ids=["kept", "low rank", "dense"],
)
def test_zo_muon_takes_the_matrix_sign_of_the_estimate(directions, rank, samples):
    """Against singular values of the estimate as one plain matrix; matrices alone move."""
    loss_oracle = language_model()
    zo = ZerothOrder(samples=samples, radius=1e-2, **directions)
    optimizer = ZOMuon(ZOMuon.Settings(lr=LR, zo=zo), loss_oracle.parameters, Run(4, SEED))
    estimate = Differences(zo, loss_oracle.parameters, SEED)
    for _ in range(3):
        dense = [t.clone() for t in estimate(loss_oracle)]
        before = weights(loss_oracle)
        optimizer.step(loss_oracle)
        moved = [(old - new) / LR for old, new in zip(before, weights(loss_oracle), strict=True)]
        for part, step in zip(dense, moved, strict=True):
            if part.dim() != 2:
                assert not step.any()
                continue
            left, values, right = torch.linalg.svd(part.double(), full_matrices=False)
            r = min(rank(samples, len(values)), len(values))
            assert r == len(values) or values[r - 1] > 100 * values[r], "the estimate has this rank"
            torch.testing.assert_close(step.double(), left[:, :r] @ right[:r], atol=2e-3, rtol=0)


def test_zo_muon_stays_in_a_subspace_while_it_is_kept():
    loss_oracle = language_model()
    zo = ZerothOrder(samples=2, radius=1e-2, direction="low_rank", rank=3, keep=2)
    optimizer = ZOMuon(ZOMuon.Settings(lr=LR, zo=zo), loss_oracle.parameters, Run(4, SEED))
    spaces = []
    for _ in range(4):
        before = weights(loss_oracle)
        optimizer.step(loss_oracle)
        moved = next(old - new for old, new in zip(before, weights(loss_oracle), strict=True) if old.dim() == 2)
        spaces.append(torch.linalg.svd(moved).U[:, :3])
    overlap = [float((a.T @ b).norm() ** 2) for a, b in itertools.pairwise(spaces)]
    assert overlap[0] == pytest.approx(3, abs=1e-2) and overlap[2] == pytest.approx(3, abs=1e-2)
    assert overlap[1] < 2.5, "the subspace is drawn anew after two steps"


def test_published_code_calls_the_sign_of_one_slope_zo_sign_sgd_ours_is_that_of_each_coordinate():
    """Published code steps by -lr sign(slope) u, as long as u; signSGD's steps are lr long in every coordinate."""
    one = ZerothOrder(samples=1, radius=0.1)
    ours, theirs = Quadratic(), Quadratic()
    start, u = ours.x.numpy(), Reference(ours, one).along()[0]
    slope = float((ours.a @ ours.x + ours.b).numpy() @ u)
    of(ZOSignSGD.Settings(lr=LR, zo=one), ours).step(ours)
    of(ZOSlopeSign.Settings(lr=LR, zo=one), theirs).step(theirs)
    np.testing.assert_allclose(ours.x.numpy() - start, -LR * np.sign(slope) * np.sign(u), atol=1e-6)
    np.testing.assert_allclose(theirs.x.numpy() - start, -LR * np.sign(slope) * u, atol=1e-6)
    assert np.abs(ours.x.numpy() - theirs.x.numpy()).max() > LR / 2


def test_zo_adam_corrects_for_the_steps_that_it_took_itself():
    """In a hybrid every second pair of steps belongs to another optimizer and does not enter Adam's averages."""
    zeroth = {"name": "zo_adam", "betas": [0.8, 0.95], "eps": 1e-6}
    settings = parse(
        Hybrid.Settings,
        {"lr": LR, "block": 4, "first": {"name": "sgd"}, "zeroth": zeroth, "zo": {"samples": 3, "radius": 0.1}},
    )
    quadratic = Quadratic()
    hybrid, reference, memory, own = of(settings, quadratic), Reference(quadratic), {}, 0
    for number in range(12):
        x = quadratic.x.numpy()
        hybrid.step(quadratic)
        if number % 4 >= 2:
            own += 1
            np.testing.assert_allclose(quadratic.x.numpy(), adam(reference, x, memory, own), atol=1e-5)
    assert own == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
def test_conservative_steps_never_raise_the_loss_on_their_batch(lr, dtype):
    """On a language model, with step sizes from harmless to absurd: the loss is the best of the three, to the bit."""
    loss_oracle = language_model(dtype=dtype)
    optimizer = ZOConservative(
        ZOConservative.Settings(lr=lr, zo=ZerothOrder(radius=0.03)), loss_oracle.parameters, Run(6, SEED)
    )
    seen: list[list[float]] = []
    values = loss_oracle.values

    def noted(part: Part, places) -> torch.Tensor:
        seen.append(values(part, places).tolist())
        return torch.tensor(seen[-1], dtype=torch.float64)

    loss_oracle.values = noted
    for _ in range(6):
        optimizer.step(loss_oracle)
        here, *others = seen[-1]
        (after,) = values(Part.TOTAL, [None]).tolist()
        assert len(others) == 2
        assert after == min(here, *others) <= here


def test_conservative_does_not_move_when_both_ways_are_worse():
    quadratic = Quadratic()
    before = [p.clone() for p in quadratic.parameters]
    of(ZOConservative.Settings(lr=1e3, zo=ZO), quadratic).step(quadratic)
    assert same_bits(before, quadratic.parameters)


def test_conservative_goes_up_the_estimate_where_that_is_better():
    """A slope that ends at a cliff: up the slope, beyond 1, everything is lower."""
    cliff = Quadratic(f=lambda x: x.sum() / 20 if (x.sum() - start) / 20 < 1 else torch.tensor(-1e3).double())
    start = float(cliff.x.sum())
    g = Reference(cliff).estimate(cliff.x.numpy())
    x, lr = cliff.x.numpy(), 30 / g.sum()
    of(ZOConservative.Settings(lr=lr, zo=ZO), cliff).step(cliff)
    np.testing.assert_allclose(cliff.x.numpy(), x + lr * g, rtol=1e-4, atol=1e-4)


def test_forward_gradient_asks_for_no_value_and_steps_by_slopes_times_directions():
    quadratic = Quadratic()
    meter = Metered(quadratic)
    optimizer = of(ForwardGradient.Settings(lr=LR, zo=RandomDirections(samples=3)), quadratic)
    reference = Reference(quadratic)
    for _ in range(4):
        x = quadratic.x.numpy()
        gradient, us = quadratic.a.numpy() @ x + quadratic.b.numpy(), reference.along()
        optimizer.step(meter)
        np.testing.assert_allclose(quadratic.x.numpy(), x - LR * np.mean((us @ gradient)[:, None] * us, 0), atol=1e-5)
    assert (meter.queries.value, meter.queries.gradient, meter.queries.directional) == (0, 0, 12)


ROUNDED = {
    "zo_sgd": {"momentum": 0.9},
    "zo_sign_sgd": {},
    "zo_slope_sign": {},
    "zo_adam": {},
    "r_adazo": {},
    "forward_gradient": {},
}


@pytest.mark.parametrize("name", list(ROUNDED))
def test_bf16_weights_take_fp32_directions_with_one_rounding(name):
    """Next to a twin whose direction is added in fp32 and rounded by hand, 400 weights, five steps."""
    settings = OPTIMIZERS[name].Settings(lr=3e-3, **ROUNDED[name])
    ours, twin = Quadratic(size=400), Quadratic(size=400)
    for one in (ours, twin):
        one.parameters = [p.bfloat16() for p in one.parameters]
    optimizer, other = of(settings, ours), of(settings, twin)
    off = off_twice = 0
    for _ in range(5):
        for p, q in zip(twin.parameters, ours.parameters, strict=True):
            p.copy_(q)
        direction = [d.clone() for d in other.direction(twin)]
        assert all(d.dtype is torch.float32 for d in direction)
        optimizer.step(ours)
        for w, d, got in zip(twin.parameters, direction, ours.parameters, strict=True):
            off += int((torch.add(w.float(), d, alpha=-3e-3).bfloat16() != got).sum())
            off_twice += int((w - (3e-3 * d).bfloat16() != got).sum())
    assert all(p.dtype is torch.bfloat16 for p in ours.parameters)
    assert off <= 2, "but for ties that fp32 breaks the other way"
    assert name in ("zo_sign_sgd", "zo_slope_sign") or off_twice > 2, "rounding the direction first would show"
    for average in ("mean", "square"):
        assert all(a.dtype is torch.float32 for a in getattr(optimizer, average, []))


def test_directions_lie_on_the_sphere_of_root_mean_square_one():
    """The displacements that are evaluated have norm r sqrt(d), each with its opposite."""
    quadratic = Quadratic()
    evaluated: list[torch.Tensor] = []
    values = quadratic.values

    def noted(part: Part, displacements: list[Displacement]) -> torch.Tensor:
        for d in displacements:
            ((scale, way),) = d.terms
            evaluated.append(scale * torch.cat([w.flatten() for w in way]))
        return values(part, displacements)

    quadratic.values = noted
    Differences(ZerothOrder(samples=3, radius=0.02), quadratic.parameters, seed=0)(quadratic)
    assert [float(d.norm()) for d in evaluated] == pytest.approx([0.02 * math.sqrt(20)] * 6, rel=1e-5)
    assert all(torch.equal(evaluated[i], -evaluated[i + 1]) for i in (0, 2, 4))


LOST_TO_ROUNDING = [
    {"name": "zo_sgd"},
    {"name": "r_adazo"},
    {"name": "hybrid", "zo_ratio": 1.0},
    {"name": "hybrid", "kind": "mix", "mix_weight": 0.5},
    {"name": "first_with_zo_noise"},
    {"name": "first_at_zo_norm"},
    {"name": "random_at_zo_norm"},
]


@pytest.mark.parametrize("data", LOST_TO_ROUNDING, ids=lambda data: "-".join(map(str, data.values())))
def test_a_difference_that_drowns_in_rounding_is_counted_and_told_once(data):
    """The message names the setting to raise, and the count is recorded."""
    kind = OPTIMIZERS[data["name"]].Settings
    flat = Quadratic(f=lambda x: 1e6 + 1e-9 * x.sum())
    optimizer = of(parse(kind, {"lr": LR, "zo": {"samples": 3, "radius": 2e-3}} | data), flat)
    with pytest.warns(UserWarning, match=r"optimizer\.zo\.radius \(now 0\.002\)") as warned:
        optimizer.step(flat)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(flat)
    assert optimizer.lost_to_rounding == 6


def test_differences_that_stand_out_are_not_counted():
    """Eleven units in the last place of the loss (in fp32) count as a slope; nine do not."""
    for ulps, expected in ((11, 0), (9, 1)):
        ulp = 64 * torch.finfo(torch.float32).eps
        results = iter([torch.tensor([64.0, 64.0 - ulps * ulp], dtype=torch.float64)])
        quadratic = Quadratic()
        quadratic.values = lambda part, places, results=results: next(results)
        estimate = Differences(ZerothOrder(), quadratic.parameters, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimate(quadratic)
        assert estimate.lost_to_rounding == expected


def test_a_run_on_a_language_model_moves_by_its_estimate_alone():
    """ZO-SGD on the LM: the step is -lr slope u with the slope from two losses at copies displaced by hand."""
    loss_oracle = language_model()
    settings = ZOSGD.Settings(lr=1e-3, zo=ZerothOrder(radius=0.01))
    u = Directions(settings.zo.direction, loss_oracle.parameters, SEED, memory="seed")(0)
    way = [u.factor * t for t in u.tensors]
    before = weights(loss_oracle)
    losses = []
    with torch.no_grad():
        for scale in (0.01, -0.01):
            for p, b, w in zip(loss_oracle.parameters, before, way, strict=True):
                p.copy_(b + scale * w)
            losses.append(float(loss_oracle.values(Part.TOTAL, [None])))
        for p, b in zip(loss_oracle.parameters, before, strict=True):
            p.copy_(b)
    slope = (losses[0] - losses[1]) / 0.02
    of(settings, loss_oracle).step(loss_oracle)
    for p, b, w in zip(loss_oracle.parameters, before, way, strict=True):
        torch.testing.assert_close(p.detach() - b, -1e-3 * slope * w, rtol=1e-3, atol=1e-6)
