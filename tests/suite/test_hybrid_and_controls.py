"""Hybrids against their parts, and matched controls against the one property that they copy."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from suite.config.errors import SpecError
from suite.config.settings import parse
from suite.optimizers import OPTIMIZERS, Optimizer, Run
from suite.optimizers.controls import _Noisy
from suite.optimizers.estimates import ZerothOrder
from suite.optimizers.first_order import Adam
from suite.optimizers.hybrid import Hybrid, layout
from suite.optimizers.parts import FIRST_ORDER, ZEROTH_ORDER
from suite.optimizers.zeroth_order import RAdaZO
from suite.oracle.base import Metered
from suite.oracle.directions import Directions, Kind
from suite.spec.search_space import plan
from suite.spec.trial import trial
from tests.support.quadratic import Quadratic
from tests.support.small import SMALL

SEED = 3
FIRST = [name for name in FIRST_ORDER if name != "adam8bit" or find_spec("bitsandbytes")]


def settings_of(name: str, **more: Any):
    return parse(OPTIMIZERS[name].Settings, {"lr": 0.01} | more)


def of(settings, quadratic, steps: int = 12, seed: int = SEED) -> Optimizer:
    return OPTIMIZERS[settings.name](settings, quadratic.parameters, Run(steps, seed))


def flat(tensors) -> np.ndarray:
    return torch.cat([t.flatten() for t in tensors]).double().numpy()


def follow(twin: Quadratic, leader: Quadratic) -> None:
    for mine, its in zip(twin.parameters, leader.parameters, strict=True):
        mine.copy_(its)


def gradient(of: Quadratic) -> np.ndarray:
    return (of.a @ of.x + of.b).numpy()


def directions(quadratic: Quadratic, numbers: range, seed: int = SEED) -> np.ndarray:
    drawn = Directions(Kind.SPHERE, quadratic.parameters, seed, memory="seed")
    return np.stack([drawn(n).factor * flat(drawn(n).tensors) for n in numbers])


def slopes(quadratic: Quadratic, us: np.ndarray, r: float) -> np.ndarray:
    x = quadratic.x.numpy()
    f = [[float(quadratic.f(torch.from_numpy(x + s * r * u))) for s in (1, -1)] for u in us]
    return np.array([(ahead - behind) / (2 * r) for ahead, behind in f])


# The layout


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.integers(2, 60))
def test_hybrid_layout(steps, ratio, block):
    made = layout(steps, ratio, block)
    zeroth = math.floor(ratio * steps + 0.5)
    assert len(made) == steps
    assert sum(made) == zeroth
    if zeroth:
        assert made[-1], "a run ends on zeroth"
    for end in range(steps, 0, -block):
        period = made[max(0, end - block) : end]
        assert period == sorted(period), "within a period the first-order steps come first"


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.one_of(st.floats(0, 1), st.sampled_from([0.25, 0.5, 0.75])), st.integers(2, 60))
def test_a_layout_that_ends_on_first_has_as_many_zeroth_steps(steps, ratio, block):
    """Also where the share of an odd number of steps is a half, which rounds up either way."""
    made = layout(steps, ratio, block, "first")
    zeroth = math.floor(ratio * steps + 0.5)
    assert len(made) == steps
    assert sum(made) == zeroth
    if zeroth < steps:
        assert not made[-1], "a run ends on first"
    for end in range(steps, 0, -block):
        period = made[max(0, end - block) : end]
        assert period == sorted(period, reverse=True), "within a period the zeroth-order steps come first"


def test_layout_of_the_paper():
    """N first-order steps, then N zeroth-order steps, and so on, ending on zeroth; or mirrored."""
    assert layout(8, 0.5, 4) == [False, False, True, True] * 2
    assert layout(8, 0.5, 4, "first") == [True, True, False, False] * 2
    assert layout(10, 0.3, 10) == [False] * 7 + [True] * 3


@pytest.mark.parametrize("ends", ["zeroth", "first"])
def test_a_hybrid_asks_what_its_layout_says(ends):
    meter = Metered(Quadratic())
    optimizer = of(settings_of("hybrid", ends=ends, block=2), meter, steps=5)
    kinds = []
    for _ in range(5):
        before = meter.queries.gradient
        optimizer.step(meter)
        kinds.append(meter.queries.gradient == before)
    assert kinds == layout(5, 0.5, 2, ends)
    counted = {kind: getattr(meter.queries, kind) for kind in ("value", "gradient", "directional", "curvature")}
    assert counted == Hybrid.queries(optimizer.settings, 5)


# The parts


def test_hybrid_is_its_parts_with_states_of_their_own():
    """In each block the hybrid steps as Adam, or R-AdaZO, would with its state at the end of its last block."""
    s = Hybrid.Settings(lr=0.02, zo_lr=0.01, zo_ratio=0.5, block=4, zo=ZerothOrder(samples=2))
    oracle, twin = Quadratic(), Quadratic()
    hybrid = of(s, oracle)
    adam = of(Adam.Settings(lr=0.02), twin)
    zeroth = of(RAdaZO.Settings(lr=0.01, zo=s.zo), twin)
    for is_zeroth in layout(12, 0.5, 4):
        hybrid.step(oracle)
        (zeroth if is_zeroth else adam).step(twin)
        assert torch.equal(oracle.x, twin.x)


def test_a_mix_is_the_weighted_sum_of_both_directions():
    """Adam and R-AdaZO line by line in numpy, each with its own averages, both evaluated at the start of the step."""
    zo = {"samples": 2, "radius": 0.1}
    s = settings_of("hybrid", kind="mix", mix_weight=0.3, lr=0.02, zo_lr=0.05, zo=zo)
    quadratic = Quadratic()
    mix = of(s, quadratic)
    m, v, n, w = (np.zeros(20) for _ in range(4))
    for t in range(1, 11):
        x, g, us = quadratic.x.numpy(), gradient(quadratic), directions(quadratic, range(2 * t - 2, 2 * t))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        first = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        n = 0.9 * n + 0.1 * slopes(quadratic, us, 0.1) @ us / 2
        w = 0.99 * w + 0.01 * n**2
        mix.step(quadratic)
        expected = x - 0.02 * 0.7 * first - 0.05 * 0.3 * n / np.sqrt(w + 1e-8)
        np.testing.assert_allclose(quadratic.x.numpy(), expected, atol=1e-5)


def test_a_mix_of_bf16_weights_is_rounded_once():
    """Each half of the step is under half a unit in the last place; together they are over it."""
    one = Quadratic(f=lambda x: x.sum())
    one.gradient = lambda *_: [torch.ones_like(p) for p in one.parameters]
    one.parameters = [torch.ones_like(p, dtype=torch.bfloat16) for p in one.parameters]
    s = settings_of(
        "hybrid", kind="mix", mix_weight=0.5, lr=2**-9 * 1.4, first={"name": "sgd"}, zeroth={"name": "zo_sgd"}
    )
    mix = of(s, one)
    mix.zeroth.direction = lambda _: [torch.ones_like(p, dtype=torch.float32) for p in one.parameters]
    mix.step(one)
    assert all(float(p.max()) == 1 - 2**-8 for p in one.parameters), "the spacing of bf16 below 1 is 2^-8"


@pytest.mark.parametrize("kind", [{"block": 2}, {"kind": "mix", "mix_weight": 0.5}], ids=["alternate", "mix"])
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("zeroth", list(ZEROTH_ORDER))
def test_any_first_order_part_goes_with_any_zeroth_order_part(first, zeroth, kind):
    quadratic = Quadratic()
    meter, start = Metered(quadratic), quadratic.x
    s = settings_of("hybrid", first={"name": first}, zeroth={"name": zeroth}, **kind)
    optimizer = of(s, meter, steps=4)
    for _ in range(4):
        optimizer.step(meter)
    assert bool(quadratic.x.isfinite().all())
    assert not torch.equal(start, quadratic.x)
    counted = {kind: getattr(meter.queries, kind) for kind in ("value", "gradient", "directional", "curvature")}
    assert counted == Hybrid.queries(s, 4)


@pytest.mark.parametrize("kind", [{"block": 2}, {"kind": "mix", "mix_weight": 0.25}], ids=["alternate", "mix"])
def test_schedule_and_warmup_reach_both_parts_by_the_run_s_step(kind):
    zo = {"samples": 1, "radius": 0.1}
    s = settings_of(
        "hybrid", lr=0.02, zo_lr=0.01, schedule="linear", warmup=3, zo=zo, first={"name": "sgd"},
        zeroth={"name": "zo_sgd"}, **kind,
    )  # fmt: skip
    quadratic, drawn = Quadratic(), 0
    optimizer = of(s, quadratic, steps=8)
    for t in range(8):
        factor = min(1, (t + 1) / 4) * (1 - t / 8)
        share = 0.25 if "kind" in kind else float(t % 2)
        x, g, us = quadratic.x.numpy(), gradient(quadratic), directions(quadratic, range(drawn, drawn + 1))
        estimate = slopes(quadratic, us, 0.1) @ us
        drawn += share > 0
        optimizer.step(quadratic)
        expected = x - factor * (0.02 * (1 - share) * g + 0.01 * share * estimate)
        np.testing.assert_allclose(quadratic.x.numpy(), expected, atol=2e-6)


# Specs


def canonical(**optimizer: Any) -> dict[str, Any]:
    return trial(SMALL | {"optimizer": optimizer}).canonical["optimizer"]


SGD_AND_ZO = {"first": {"name": "sgd", "momentum": 0.9}, "zeroth": {"name": "zo_sgd", "momentum": 0.5}}


@pytest.mark.parametrize("share", ["zo_ratio", "mix_weight"])
def test_a_hybrid_of_one_part_alone_is_that_optimizer(share):
    """Same id, with the part's own settings, and the schedule and step size of the whole."""
    hybrid = SGD_AND_ZO | {"name": "hybrid", "lr": 0.1, "zo_lr": 0.2, "schedule": "linear", "zo": {"samples": 4}}
    hybrid |= {"kind": "mix"} if share == "mix_weight" else {}
    assert canonical(**hybrid, **{share: 0}) == {"name": "sgd", "lr": 0.1, "schedule": "linear", "momentum": 0.9}
    assert canonical(**hybrid, **{share: 1}) == {
        "name": "zo_sgd", "lr": 0.2, "schedule": "linear", "momentum": 0.5, "zo": {"samples": 4},
    }  # fmt: skip
    assert canonical(**hybrid, **{share: 0.25})["name"] == "hybrid"


def test_a_hybrid_of_adamw_alone_is_adam_with_its_decay():
    alone = settings_of("hybrid", zo_ratio=0, first={"name": "adamw"})
    assert alone.plainest() == Adam.Settings(lr=0.01, weight_decay=0.01)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "mix"}, "needs mix_weight"),
        ({"kind": "mix", "mix_weight": 0.5, "zo_ratio": 0.3}, "zo_ratio belongs to kind=alternate"),
        ({"kind": "mix", "mix_weight": 0.5, "ends": "first"}, "ends belongs to kind=alternate"),
        ({"mix_weight": 0.5}, "mix_weight belongs to kind=mix"),
        ({"zeroth": "forward_gradient", "zo": {"radius": 0.1}}, r"forward_gradient has no zo\.radius"),
        ({"first": {"name": "sgd", "nesterov": True}}, "nesterov"),
        ({"name": "first_with_zo_noise", "first": {"name": "sgd", "nesterov": True}}, "nesterov"),
        ({"name": "first_at_zo_norm", "first": {"name": "sgd", "nesterov": True}}, "nesterov"),
        ({"name": "random_at_zo_norm", "zeroth": "forward_gradient", "zo": {"radius": 0.1}}, r"zo\.radius"),
        ({"first": {"name": "sgdd"}}, r"optimizer\.first\.name: unknown: sgdd\. Did you mean sgd\?"),
        ({"first": {"name": "sgd", "lr": 1.0}}, r"optimizer\.first\.lr"),
        ({"first": "zo_sgd"}, r"optimizer\.first\.name: unknown: zo_sgd"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_key(data, message):
    with pytest.raises(SpecError, match=message) as refused:
        canonical(**({"name": "hybrid", "lr": 0.1} | data))
    assert str(refused.value).startswith("optimizer")


def test_parts_by_their_bare_names():
    assert canonical(name="hybrid", lr=0.1, first="sgd", zeroth="zo_sgd") == {
        "name": "hybrid", "lr": 0.1, "first": {"name": "sgd"}, "zeroth": {"name": "zo_sgd"},
    }  # fmt: skip


def test_settings_of_parts_are_axes_of_a_grid_where_the_part_has_them():
    grid = {"optimizer.first.name": ["sgd", "adam"], "optimizer.first.momentum": [0.0, 0.9]}
    made = plan(SMALL | {"optimizer": {"name": "hybrid", "lr": 0.1, "block": 2}, "search": {"grid": grid}}).trials()
    assert [t.canonical["optimizer"].get("first", {"name": "adam"}) for t in made] == [
        {"name": "sgd"}, {"name": "sgd", "momentum": 0.9}, {"name": "adam"},
    ]  # fmt: skip


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "adamw"])
def test_a_trial_of_defaults_has_no_key_that_was_not_given(name):
    """So that what is added later leaves old ids alone."""
    assert canonical(name=name, lr=1e-3) == {"name": name, "lr": 1e-3}


OLD = [
    {"name": "hybrid", "lr": 1e-3, "zo_lr": 1e-4, "zo_ratio": 0.25, "block": 2, "zo": {"samples": 8, "radius": 0.01}},
    {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1, "schedule": "linear", "warmup": 2},
    {"name": "sophia", "lr": 1e-3, "every": 2, "gamma": 0.5},
    {"name": "r_adazo", "lr": 1e-3, "betas": [0.8, 0.9], "zo": {"direction": "gaussian"}},
    {"name": "zo_sgd", "lr": 1e-3, "momentum": 0.9},
    {"name": "sign_adam", "lr": 1e-3, "betas": [0.8, 0.9]},
    {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
]


@pytest.mark.parametrize("given", OLD, ids=lambda given: given["name"])
def test_an_old_trial_is_written_as_it_was(given):
    assert canonical(**given) == given


# Controls


@pytest.mark.parametrize(("every", "samples"), [(1, 1), (1, 3), (3, 2)])
def test_the_noise_s_deviation_is_that_of_the_slopes_measured_so_far(every, samples):
    """sqrt(E[slope^2] / q) along the directions that the imitated estimator draws."""
    zo = {"samples": samples, "radius": 0.1}
    quadratic = Quadratic()
    control = of(settings_of("first_with_zo_noise", every=every, zo=zo, first={"name": "sgd"}), quadratic)
    seen: list[float] = []
    for t in range(7):
        if t % every == 0:
            us = directions(quadratic, range(len(seen), len(seen) + samples))
            seen += slopes(quadratic, us, 0.1).tolist()
        control.step(quadratic)
        expected = math.sqrt(np.mean(np.square(seen)) / samples)
        assert control.deviation(quadratic) == pytest.approx(expected, rel=1e-5)


def test_the_first_part_is_fed_with_the_gradient_and_noise_of_that_deviation():
    """400 seeds from one place, 20 coordinates: z = (fed - g) / deviation is standard normal and new in each step."""
    settings = settings_of("first_with_zo_noise", lr=1.0, zo={"samples": 4, "radius": 0.1}, first={"name": "sgd"})
    zs, squares = [], []
    exact = gradient(Quadratic())
    for seed in range(400):
        quadratic = Quadratic()
        control = of(settings, quadratic, seed=seed)
        x = quadratic.x.numpy()
        control.step(quadratic)
        deviation = control.deviation(quadratic)
        zs.append((x - quadratic.x.numpy() - exact) / deviation)
        squares.append(deviation**2)
    z = np.stack(zs)
    assert np.abs(z.mean(0)).max() < 4 / math.sqrt(400)
    assert (z**2).sum() == pytest.approx(z.size, abs=5 * math.sqrt(2 * z.size)), "chi-square of 8000"
    # On the sphere E[slope^2] = |g|^2, whatever the radius on a quadratic; one seed's mean of four is spread by 0.7.
    assert np.mean(squares) == pytest.approx(exact @ exact / 4, rel=5 * 0.7 / math.sqrt(400))


def test_each_step_s_noise_is_new_and_apart_from_the_directions():
    quadratic = Quadratic()
    exact = gradient(quadratic)
    drawn = [
        flat(_Noisy(quadratic, 1.0, (SEED, 1 << 40, step)).gradient()) - exact for step in range(3)
    ] + [*directions(quadratic, range(3))]  # fmt: skip
    correlation = np.corrcoef(np.stack(drawn)) - np.eye(6)
    assert np.abs(correlation).max() < 0.8, "20 coordinates: by chance 0.22 on average"


@pytest.mark.parametrize("first", FIRST)
def test_any_first_order_part_takes_noise_and_a_length(first):
    for name in ("first_with_zo_noise", "first_at_zo_norm"):
        quadratic = Quadratic()
        start = quadratic.x
        control = of(settings_of(name, first={"name": first}), quadratic)
        for _ in range(3):
            control.step(quadratic)
        assert bool(quadratic.x.isfinite().all())
        assert not torch.equal(start, quadratic.x)


@pytest.mark.parametrize("zeroth", [n for n in ZEROTH_ORDER if n != "zo_conservative"])
@pytest.mark.parametrize("name", ["first_at_zo_norm", "random_at_zo_norm"])
def test_steps_are_as_long_as_those_of_the_zeroth_order_optimizer_beside_it(name, zeroth):
    """A twin takes the zeroth-order steps from wherever the control stands, on a schedule."""
    more = {"lr": 0.05, "schedule": "linear", "warmup": 2}
    ours, twin, guide = Quadratic(), Quadratic(), Quadratic()
    control = of(settings_of(name, zeroth={"name": zeroth}, **more), ours, steps=8)
    beside = of(settings_of(zeroth, **more), twin, steps=8)
    adam = of(settings_of("adam", **more), guide, steps=8)
    for _ in range(8):
        for other in (twin, guide):
            follow(other, ours)
        x = ours.x.numpy()
        for optimizer, oracle in ((control, ours), (beside, twin), (adam, guide)):
            optimizer.step(oracle)
        step, zeroth_step, first_step = (o.x.numpy() - x for o in (ours, twin, guide))
        assert np.linalg.norm(step) == pytest.approx(np.linalg.norm(zeroth_step), rel=1e-4)
        cosine = step @ first_step / np.linalg.norm(step) / np.linalg.norm(first_step)
        if name == "first_at_zo_norm":
            assert cosine == pytest.approx(1, abs=1e-5)
        else:
            assert abs(cosine) < 0.9, "in 20 dimensions 0.9 is 8 standard deviations"


@pytest.mark.parametrize("zeroth", ["r_adazo", "zo_sgd"])
def test_a_random_walk_does_not_know_which_way_is_down(zeroth):
    """The loss turned over gives the same run, bit for bit."""
    valley, hill = Quadratic(), Quadratic()
    hill.f = lambda x, f=valley.f: -f(x)
    walks = [of(settings_of("random_at_zo_norm", zeroth={"name": zeroth}), q) for q in (valley, hill)]
    start = valley.x
    for _ in range(8):
        for walk, quadratic in zip(walks, (valley, hill), strict=True):
            walk.step(quadratic)
        assert torch.equal(valley.x, hill.x)
    assert not torch.equal(start, valley.x)


@pytest.mark.parametrize("name", ["first_at_zo_norm", "random_at_zo_norm"])
@pytest.mark.parametrize("zeroth", ["zo_sgd", "zo_conservative", "forward_gradient"])
def test_what_a_control_says_it_asks_follows_from_its_part(name, zeroth):
    meter = Metered(Quadratic())
    s = settings_of(name, zeroth={"name": zeroth}, zo={"samples": 2})
    control = of(s, meter)
    for _ in range(4):
        control.step(meter)
    counted = {kind: getattr(meter.queries, kind) for kind in ("value", "gradient", "directional", "curvature")}
    assert counted == type(control).queries(s, 4)
