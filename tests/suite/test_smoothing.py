"""Every smoothing by its formula: closed forms, torch.func on the whole scalar, and line-by-line numpy."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from test_oracle import direction, same_bits, weights
from test_oracle import oracle as llama_oracle

from suite.optimizers import OPTIMIZERS, Plan
from suite.oracle.base import CurvatureSample, Displacement, Grade, Metered, Order, Part, Queries, norm
from suite.smoothing import SMOOTHINGS, Smoothing
from suite.smoothing.arithmetic import combined, place, project
from suite.smoothing.sharpness_aware import adaptive_ascent
from suite.smoothing.universal_sam import sharpness, sharpness_slopes

Function = Callable[[torch.Tensor], torch.Tensor]

SIZE = 8
SHORT = {"wa": {"start": 2, "every": 2}, "ema": {"every": 2}}
"""Settings with which a run of a few steps has something to average."""
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, SHORT.get(name, {})) for name in SMOOTHINGS),
    ("gp", {"form": "difference"}),
    ("cp", {"form": "difference"}),
    ("universal_sam", {"form": "trace"}),
    ("extrapolation", {"kind": "noise"}),
    *(("stable_un", {"perturbation": kind}) for kind in ("gaussian", "relearn", "historical")),
]
every_variant = pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "")


def matrix(seed: int, size: int = SIZE) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size


def vector(seed: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratic(seed: int) -> Function:
    a, b = matrix(seed), vector(seed + 100)
    return lambda x: x @ a @ x / 2 + b @ x


def quartic(seed: int) -> Function:
    """A quadratic with a fourth-order term, so that its Hessian changes from place to place."""
    a, rest = matrix(seed + 200), quadratic(seed)
    return lambda x: rest(x) + (x @ a @ x) ** 2 / 40


class Functions:
    """An oracle of functions of one vector, differentiated by torch in float64. Weights, gradients in `dtype`."""

    def __init__(
        self, forget: Function | None = None, retain: Function | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        forget, retain = forget or quartic(1), retain or quartic(2)
        self.f: dict[Part, Function] = {
            Part.FORGET: forget,
            Part.RETAIN: retain,
            Part.RELEARN: quartic(3),
            Part.TOTAL: lambda x: forget(x) + retain(x),
        }
        start = vector(7)
        self.parameters = [start[: SIZE // 2].view(2, -1).to(dtype), start[SIZE // 2 :].to(dtype)]
        self.queries = Queries()
        self.asked: list[tuple[Part, torch.Tensor]] = []
        self.told = 0

    @property
    def x(self) -> torch.Tensor:
        return flat(self.parameters)

    def split(self, x: torch.Tensor) -> list[torch.Tensor]:
        made = [x[: SIZE // 2].view(2, -1), x[SIZE // 2 :]]
        return [m.to(p.dtype) for m, p in zip(made, self.parameters, strict=True)]

    def at(self, part: Part, displacement: Displacement | None) -> torch.Tensor:
        x = self.x.clone()
        for scale, way in displacement.terms if displacement else ():
            x += scale * flat(way)
        self.asked.append((part, x))
        return x

    def values(self, part: Part, displacements: Sequence[Displacement | None]) -> torch.Tensor:
        self.queries.value += len(displacements)
        return torch.stack([self.f[part](self.at(part, d)) for d in displacements])

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[torch.Tensor]:
        self.queries.gradient += 1
        x = self.at(part, at).requires_grad_()
        (gradient,) = torch.autograd.grad(self.f[part](x), x)
        x.requires_grad_(False)
        return self.split(gradient)

    def directional(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> float:
        self.queries.directional += 1
        return float(torch.func.jvp(self.f[part], (self.at(part, at),), (flat(direction),))[1])

    def curvature_sample(self) -> CurvatureSample:
        self.queries.curvature += 1
        return CurvatureSample(self.split(vector(9)), 1)

    def hvp(self, part: Part, direction: Sequence[torch.Tensor], at: Displacement | None = None) -> list[torch.Tensor]:
        self.queries.curvature += 1
        return self.split(torch.func.jvp(torch.func.grad(self.f[part]), (self.at(part, at),), (flat(direction),))[1])

    def compressed(self, bits: int) -> None:
        self.queries.bits.add(bits)

    def stepped(self) -> None:
        self.told += 1


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]).double()


def smooth(name: str, oracle: object, steps: int = 6, seed: int = 0, **changes: object) -> Smoothing:
    kind = SMOOTHINGS[name]
    return kind(oracle, kind.Settings(**changes), Plan(steps, seed))


def grad(f: Function, x: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(f)(x)


def close(one: Sequence[torch.Tensor], expected: torch.Tensor, rtol: float = 1e-5) -> None:
    """Relative to the whole vector."""
    assert float((flat(one) - expected).norm()) <= rtol * float(expected.norm())


# --- arithmetic


def test_projection_by_the_paper():
    """PCGrad in numpy: only what conflicts is taken away, and by an inner product over all tensors."""
    one, other = [torch.tensor([1.0, 2.0]), torch.tensor([[-4.0]])], [torch.tensor([3.0, 0.0]), torch.tensor([[1.0]])]
    g, r = flat(one).numpy(), flat(other).numpy()
    np.testing.assert_allclose(flat(project(one, other)).numpy(), g - (g @ r) / (r @ r) * r, rtol=1e-6)
    assert abs(float(flat(project(one, other)) @ flat(other))) < 1e-5
    agreeing = [-g for g in one]
    assert torch.equal(flat(project(agreeing, other)), flat(agreeing))
    nothing = [torch.zeros_like(o) for o in other]
    assert torch.equal(flat(project(one, nothing)), flat(one))


def test_sums_are_fp32_and_rounded_once():
    """In bf16 1 + 2^-9 is 1 however often it is added; 1 + 4 * 2^-9 is not."""
    one, little = [torch.ones(1, dtype=torch.bfloat16)], [torch.full((1,), 2.0**-9, dtype=torch.bfloat16)]
    total = combined([(1.0, one), *[(1.0, little)] * 4], like=one)
    assert total[0].dtype is torch.bfloat16
    assert float(total[0]) == 1 + 4 * 2.0**-9


# --- sharpness-aware


def test_sam_on_a_quadratic_in_closed_form():
    oracle = Functions(quadratic(1), quadratic(2))
    a, x, rho = matrix(1), oracle.x, 0.3
    g = a @ x + vector(101)
    worst = a @ (x + rho * g / g.norm()) + vector(101)
    sam = smooth("sam", oracle, rho=rho)
    close(sam.gradient(Part.FORGET), worst)
    close(sam.gradient(), worst + grad(quadratic(2), x))


def test_asam_on_a_quadratic_line_by_line():
    oracle = Functions(quadratic(1), quadratic(2))
    x, a, b = oracle.x.numpy(), matrix(1).numpy(), vector(101).numpy()
    t = np.abs(x) + 0.2
    g = a @ x + b
    e = 0.4 * t**2 * g / np.linalg.norm(t * g)
    expected = torch.from_numpy(a @ (x + e) + b)
    close(smooth("asam", oracle, rho=0.4, eta=0.2).gradient(Part.FORGET), expected)
    close(smooth("asam", oracle, rho=0.4, eta=0.2).gradient(), expected + grad(quadratic(2), oracle.x))


def test_asam_is_blind_to_the_scale_of_the_weights_and_sam_is_not():
    """f(D x) at x / D is the same function: the worst loss within ASAM's ball is too, as eta goes to 0."""
    f, x, scale = quartic(1), vector(7), vector(11).abs() + 0.5
    rescaled = lambda z: f(scale * z)  # noqa: E731
    one = flat(adaptive_ascent([grad(f, x)], [x], 1e-9))
    other = flat(adaptive_ascent([grad(rescaled, x / scale)], [x / scale], 1e-9))
    assert float(f(x + 0.1 * one)) == pytest.approx(float(rescaled(x / scale + 0.1 * other)), rel=1e-5)
    plain, twisted = grad(f, x), grad(rescaled, x / scale)
    worst = float(rescaled(x / scale + 0.1 * twisted / twisted.norm()))
    assert float(f(x + 0.1 * plain / plain.norm())) != pytest.approx(worst, rel=1e-2)


# --- randomized smoothing


def test_randomized_smoothing_converges_to_the_smoothed_quartic():
    """E |x + s xi|^4 = |x|^4 + (2 d + 4) s^2 |x|^2 + d (d + 2) s^4, in closed form; its gradient too."""
    oracle, s, d = Functions(lambda x: (x @ x) ** 2, lambda x: 5 * x.sum()), 0.3, SIZE
    rs = smooth("rs", oracle, sigma=s, samples=1500)
    x = oracle.x
    square = x @ x
    value = float(square**2 + (2 * d + 4) * s**2 * square + d * (d + 2) * s**4)
    forget, total = (float(rs.values(part, [None])) for part in (Part.FORGET, Part.TOTAL))
    assert forget == pytest.approx(value, rel=0.05)  # a draw is spread by less than 50 %: 4 sigma
    assert total - forget == pytest.approx(float(5 * x.sum())), "retain from where we stand"
    assert float(square**2) < 0.85 * value, "the plain loss would be noticed"
    gradient = (4 * square + 2 * (2 * d + 4) * s**2) * x
    close(rs.gradient(Part.FORGET), gradient, rtol=0.05)
    assert float((4 * square * x - gradient).norm() / gradient.norm()) > 0.1, "the plain gradient would be noticed"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rs", {"sigma": 0.2}),
        ("universal_sam", {"sigma": 0.2, "weight": 0.3, "form": "trace"}),
        ("universal_sam", {"sigma": 0.2, "weight": 0.03, "form": "frobenius"}),
        ("irm", {"weight": 0.2}),
    ],
)
@pytest.mark.parametrize("part", [Part.FORGET, Part.TOTAL])
@pytest.mark.parametrize("displaced", [False, True])
def test_values_gradients_and_derivatives_are_those_of_one_function(name, changes, part, displaced):
    oracle = Functions()
    smoothed = smooth(name, oracle, **changes)
    at = Displacement.along(oracle.split(vector(21)), 0.3) if displaced else None
    way, h = oracle.split(vector(20)), 1e-4
    forth, back = Displacement.along(way, h) + at, Displacement.along(way, -h) + at
    ahead, behind = smoothed.values(part, [forth, back]).tolist()
    slope = (ahead - behind) / (2 * h)
    assert float(flat(smoothed.gradient(part, at)) @ flat(way)) == pytest.approx(slope, rel=1e-4)
    assert smoothed.directional(part, way, at) == pytest.approx(slope, rel=1e-4)
    plain = float(flat(oracle.gradient(part, at)) @ flat(way))
    assert slope != pytest.approx(plain, rel=1e-3), "smoothing changes it"


def test_randomized_hessian_products_are_the_slope_of_randomized_gradients():
    oracle = Functions()
    rs = smooth("rs", oracle, sigma=0.2)
    way = oracle.split(vector(20))
    ahead, behind = (rs.gradient(at=Displacement.along(way, h)) for h in (0.01, -0.01))
    close(rs.hvp(Part.TOTAL, way), (flat(ahead) - flat(behind)) / 0.02, rtol=1e-3)


@pytest.mark.parametrize("name", ["rs", "universal_sam"])
def test_the_neighbourhood_stays_for_a_step_and_is_another_one_in_the_next(name):
    oracle = Functions()
    smoothed, other = smooth(name, oracle, sigma=0.1), smooth(name, oracle, sigma=0.1, seed=1)
    first = smoothed.values(Part.FORGET, [None])
    smoothed.gradient()
    assert torch.equal(smoothed.values(Part.FORGET, [None]), first)
    assert not torch.equal(other.values(Part.FORGET, [None]), first)
    smoothed.stepped()
    assert not torch.equal(smoothed.values(Part.FORGET, [None]), first)


# --- penalties on the gradient


def penalised(name: str, f: Function, weight: float, rho: float = 0.2) -> Function:
    """The whole scalar, for autograd to differentiate."""

    def steepness(x: torch.Tensor) -> torch.Tensor:
        return f(x) + weight * grad(f, x).norm()

    def bend(x: torch.Tensor) -> torch.Tensor:
        g = grad(f, x)
        return f(x) + weight * (grad(f, x + rho * g / g.norm()) - g).norm()

    return steepness if name == "gp" else bend


def penalty_settings(name: str, **changes: object) -> dict[str, object]:
    return {**({"rho": 0.2} if name == "cp" else {}), **changes}


def test_gradient_penalty_on_a_quadratic_in_closed_form():
    oracle = Functions(quadratic(1), quadratic(2))
    a, x = matrix(1), oracle.x
    g = a @ x + vector(101)
    expected = g + 0.7 * a @ g / g.norm()
    for form in ("exact", "difference"):
        close(smooth("gp", oracle, weight=0.7, form=form).gradient(Part.FORGET), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["gp", "cp"])
@pytest.mark.parametrize("form", ["exact", "difference"])
@pytest.mark.parametrize("make", [quadratic, quartic])
def test_penalties_move_the_gradient_as_autograd_on_the_whole_scalar_says(name, form, make):
    """Published code sums squared gradients as Python floats, so that the penalty has no gradient."""
    oracle = Functions(make(1), make(2))
    got = smooth(name, oracle, **penalty_settings(name, weight=3.0, form=form, radius=1e-3))
    expected = grad(penalised(name, make(1), 3.0), oracle.x)
    tolerance = 1e-5 if form == "exact" else 5e-3  # fp32 gradients over a radius of 1e-3
    close(got.gradient(Part.FORGET), expected, tolerance)
    close(got.gradient(), expected + grad(make(2), oracle.x), tolerance)
    plain = grad(make(1), oracle.x)
    assert float((expected - plain).norm() / plain.norm()) > 0.05, "a penalty without a gradient would be noticed"


def test_penalties_can_be_asked_about_elsewhere():
    oracle = Functions()
    way = oracle.split(vector(21))
    for name in ("gp", "cp"):
        got = smooth(name, oracle, **penalty_settings(name, weight=3.0)).gradient(Part.FORGET, Displacement.along(way))
        close(got, grad(penalised(name, quartic(1), 3.0), oracle.x + flat(way)))


@pytest.mark.parametrize("name", ["gp", "cp"])
@pytest.mark.parametrize("form", ["exact", "difference"])
def test_a_penalty_of_no_weight_leaves_the_gradient_alone(name, form):
    """Published code adds the forget gradient a second time before its curvature penalty."""
    oracle = Functions()
    light = smooth(name, oracle, weight=1e-30, form=form)
    assert torch.equal(flat(light.gradient(Part.FORGET)), flat(oracle.gradient(Part.FORGET)))
    close(light.gradient(), flat(oracle.gradient()), 1e-6)


@pytest.mark.parametrize("name", ["gp", "cp"])
def test_a_penalty_is_proportional_to_its_weight(name):
    """Published code multiplies by a literal instead of the weight that was set."""
    oracle = Functions()
    plain = flat(oracle.gradient(Part.FORGET))
    one, ten = (flat(smooth(name, oracle, weight=w).gradient(Part.FORGET)) - plain for w in (1.0, 10.0))
    torch.testing.assert_close(ten, 10 * one, rtol=1e-3, atol=1e-6)


def test_the_reach_of_the_curvature_penalty_is_the_one_that_was_set():
    """Published code has a literal for the distance between the two gradients."""
    oracle = Functions()
    for rho in (0.01, 0.5):
        got = smooth("cp", oracle, weight=3.0, rho=rho).gradient(Part.FORGET)
        close(got, grad(penalised("cp", quartic(1), 3.0, rho), oracle.x), 1e-4)


@pytest.mark.parametrize("name", ["sam", "asam", "gp", "cp", "stable_un"])
def test_a_parameter_without_a_gradient_does_not_shift_the_others(name):
    """Published code drops gradients that are None from the perturbation and pairs the rest with the wrong weights."""
    head = lambda f: lambda x: f(torch.cat([torch.zeros(SIZE // 2), x[SIZE // 2 :]]))  # noqa: E731
    forget = head(quartic(1))
    oracle = Functions(forget, head(quartic(2)))
    got = smooth(name, oracle).gradient(Part.FORGET)
    assert not bool(got[0].any())
    for _, x in oracle.asked:
        assert torch.equal(x[: SIZE // 2], oracle.x[: SIZE // 2])
    if name in ("gp", "cp"):
        close(got, grad(penalised(name, forget, 10.0, 0.01), oracle.x), 1e-4)


@pytest.mark.parametrize("name", ["sam", "asam", "gp", "cp", "stable_un", "extrapolation", "irm", "universal_sam"])
def test_where_the_forget_loss_is_flat_the_retain_gradient_is_left(name):
    flat_forget = Functions(lambda x: 0 * x.sum() + 3, quadratic(2))
    flat_forget.f[Part.RELEARN] = lambda x: 0 * x.sum()
    smoothed = smooth(name, flat_forget, **({"weight": 1e-12} if name == "irm" else {}))
    assert not bool(flat(smoothed.gradient(Part.FORGET)).abs().max() > 1e-6)
    close(smoothed.gradient(), grad(quadratic(2), flat_forget.x), rtol=1e-2)  # stable_un asks it a little further on


def test_gradient_penalty_on_a_model_is_double_backward():
    """Loss plus weight times the norm of its gradient, differentiated as one scalar."""
    asked = llama_oracle()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        loss = asked.objective.forget(asked.model, asked.batch)
        first = torch.autograd.grad(loss, asked.parameters, create_graph=True)
        whole = loss + 2.0 * torch.cat([g.flatten() for g in first]).norm()
        expected = flat(torch.autograd.grad(whole, asked.parameters))
    close(smooth("gp", asked, weight=2.0).gradient(Part.FORGET), expected, 1e-4)
    close(smooth("gp", asked, weight=2.0, form="difference", radius=3e-4).gradient(Part.FORGET), expected, 0.02)
    assert float((expected - flat(asked.gradient(Part.FORGET))).norm() / expected.norm()) > 0.1


def test_curvature_penalty_on_a_model_is_the_slope_of_its_value():
    """The penalty from gradients of the model at two sides along a direction, against its gradient."""
    asked, rho = llama_oracle(), 0.05

    def penalty(at: Displacement) -> float:
        g = asked.gradient(Part.FORGET, at)
        ahead = asked.gradient(Part.FORGET, Displacement.along(g, rho / float(norm(g))) + at)
        return float((flat(ahead) - flat(g)).norm())

    exact, difference = (
        flat(smooth("cp", asked, weight=1.0, rho=rho, form=form, radius=3e-4).gradient(Part.FORGET))
        - flat(asked.gradient(Part.FORGET))
        for form in ("exact", "difference")
    )
    assert float((exact - difference).norm() / exact.norm()) < 0.02
    way = [w.to(p.dtype) for w, p in zip(split_like(exact, asked.parameters), asked.parameters, strict=True)]
    h = 3e-4 / float(norm(way))
    slope = (penalty(Displacement.along(way, h)) - penalty(Displacement.along(way, -h))) / (2 * h)
    assert slope == pytest.approx(float(exact @ exact), rel=0.01)


def split_like(x: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [part.view_as(t) for part, t in zip(x.split([t.numel() for t in like]), like, strict=True)]


# --- universal sharpness


def test_second_differences_know_the_trace_and_the_frobenius_norm():
    """tr A and ||A||_F^2 of a quadratic, from values alone."""
    oracle, n = Functions(quadratic(1)), 1_500
    a, f = matrix(1), float(quadratic(1)(oracle.x))
    for form, exact in (("trace", float(a.trace())), ("frobenius", float(a.square().sum()))):
        smoothed = smooth("universal_sam", oracle, form=form, weight=1.0, sigma=0.1, samples=n)
        assert float(smoothed.values(Part.FORGET, [None])) - f == pytest.approx(exact, rel=0.2)  # 4 sigma


def test_the_trace_of_a_quartic_in_closed_form():
    """E c = 2 (2 d + 4) |x|^2 + 2 s^2 d (d + 2) for |x|^4."""
    oracle, s, d = Functions(lambda x: (x @ x) ** 2), 0.2, SIZE
    smoothed = smooth("universal_sam", oracle, form="trace", weight=1.0, sigma=s, samples=1500)
    square = float(oracle.x @ oracle.x)
    expected = 2 * (2 * d + 4) * square + 2 * s**2 * d * (d + 2)
    assert float(smoothed.values(Part.FORGET, [None])) - square**2 == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("form", ["trace", "frobenius"])
def test_sharpness_estimators_are_unbiased_and_their_slopes_are_their_derivatives(form):
    c = torch.tensor([3.0, -1.0, 4.0, 1.5], dtype=torch.float64)
    pairs = [(c[i] - c[j]) ** 2 / 4 for i in range(4) for j in range(4) if i != j]  # E is Var / 2 for each pair
    expected = c.mean() if form == "trace" else torch.stack(pairs).mean()
    torch.testing.assert_close(sharpness(c, form), expected)
    torch.testing.assert_close(sharpness_slopes(c, form), grad(lambda x: sharpness(x, form), c))


# --- StableUN


@pytest.mark.parametrize("kind", ["adversarial", "relearn"])
@pytest.mark.parametrize("sign", [1, -1])
def test_stable_unlearning_line_by_line(kind, sign):
    """In numpy, with quadratics; turning the retain loss over makes conflict of agreement."""
    a, b, c, d = matrix(1).numpy(), vector(101).numpy(), sign * matrix(2).numpy(), sign * vector(102).numpy()
    forget, retain = quadratic(1), quadratic(2)
    oracle = Functions(forget, lambda x: sign * retain(x))
    x, rho, lr = oracle.x.numpy(), 0.3, 0.01
    inner = x - lr * (a @ x + b + c @ x + d)
    way = a @ inner + b if kind == "adversarial" else -grad(quartic(3), torch.from_numpy(inner)).numpy()
    g_f, g_r = a @ (inner + rho * way / np.linalg.norm(way)) + b, c @ inner + d
    assert bool(g_f @ g_r < 0) is (sign == -1), "both cases are there"
    fixed = g_f - min(0.0, g_f @ g_r) / (g_r @ g_r) * g_r
    smoothed = smooth("stable_un", oracle, perturbation=kind, rho=rho, inner_lr=lr)
    close(smoothed.gradient(), torch.from_numpy(fixed + g_r))
    close(smoothed.gradient(Part.FORGET), torch.from_numpy(g_f))


def test_stable_unlearning_asks_at_random_a_length_rho_away():
    oracle = Functions()
    smoothed = smooth("stable_un", oracle, perturbation="gaussian", rho=0.3, inner_lr=0.05)
    inner = oracle.x - 0.05 * grad(oracle.f[Part.TOTAL], oracle.x)
    places = []
    for _ in range(2):
        oracle.asked.clear()
        smoothed.gradient()
        (_, total), (_, forget), (_, retain) = oracle.asked
        assert torch.equal(total, oracle.x)
        torch.testing.assert_close(retain, inner, rtol=1e-5, atol=1e-5)
        assert float((forget - inner).norm()) == pytest.approx(0.3, rel=1e-5)
        places.append(forget)
        smoothed.stepped()
    assert not torch.equal(*places)


@pytest.mark.parametrize("rho", [0.05, 100.0])
def test_stable_unlearning_looks_back_to_the_mean_of_its_weights_and_not_beyond(rho):
    oracle = Functions()
    smoothed = smooth("stable_un", oracle, perturbation="historical", rho=rho, inner_lr=0.01)
    history = [oracle.x.clone()]
    for seed in (31, 32):
        for p, d in zip(oracle.parameters, oracle.split(vector(seed)), strict=True):
            p.add_(d)
        history.append(oracle.x.clone())
        smoothed.stepped()
    inner = oracle.x - 0.01 * grad(oracle.f[Part.TOTAL], oracle.x)
    way = torch.stack(history).mean(0) - inner
    expected = inner + way * min(1.0, rho / float(way.norm()))
    oracle.asked.clear()
    smoothed.gradient(Part.FORGET)
    torch.testing.assert_close(oracle.asked[-1][1], expected, rtol=1e-5, atol=1e-5)


# --- invariance


def invariant(oracle: Functions, weight: float) -> Function:
    """The penalty with its dummy scale w differentiated at 1, as the paper writes it."""

    def whole(x: torch.Tensor) -> torch.Tensor:
        total = oracle.f[Part.FORGET](x)
        for part in (Part.RELEARN, Part.RETAIN):
            slope = torch.func.grad(lambda w, part=part: oracle.f[part](w * x))(torch.ones((), dtype=torch.float64))
            total = total + weight * slope**2
        return total

    return whole


def test_invariance_is_the_squared_slope_along_the_scale_of_the_weights():
    oracle = Functions()
    irm, whole = smooth("irm", oracle, weight=0.2), invariant(oracle, 0.2)
    way = oracle.split(vector(20))
    places = [None, Displacement.along(way, 0.1)]
    expected = [float(whole(oracle.x)), float(whole(oracle.x + 0.1 * flat(way)))]
    assert irm.values(Part.FORGET, places).tolist() == pytest.approx(expected, rel=1e-5)
    close(irm.gradient(Part.FORGET), grad(whole, oracle.x))
    close(
        irm.gradient(at=places[1]),
        grad(whole, oracle.x + 0.1 * flat(way)) + flat(oracle.gradient(Part.RETAIN, places[1])),
    )


def test_invariance_of_a_model_is_the_slope_of_its_values():
    asked = llama_oracle()
    irm = smooth("irm", asked, weight=0.5)
    way = direction(asked)
    way = [w / float(norm(way)) for w in way]
    ahead, behind = irm.values(Part.TOTAL, [Displacement.along(way, 0.01), Displacement.along(way, -0.01)]).tolist()
    slope = (ahead - behind) / 0.02
    assert float(flat(irm.gradient()) @ flat(way)) == pytest.approx(slope, rel=0.02)
    assert irm.directional(Part.TOTAL, way) == pytest.approx(slope, rel=0.02)


# --- averages of iterates


def walk(smoothed: Smoothing, steps: int) -> None:
    """Steps that use gradients and differences of values, so that what either changes shows."""
    way = [torch.ones_like(p) for p in smoothed.parameters]
    for _ in range(steps):
        gradient = smoothed.gradient()
        ahead, behind = smoothed.values(
            Part.TOTAL, [Displacement.along(way, 0.01), Displacement.along(way, -0.01)]
        ).tolist()
        with torch.no_grad():
            for p, g in zip(smoothed.parameters, gradient, strict=True):
                p.sub_(0.02 * g.to(p.dtype) + 0.001 * (ahead - behind))
        smoothed.stepped()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_averaging_publishes_the_mean_of_its_iterates_and_leaves_the_steps_alone(dtype):
    plain, averaged = Functions(dtype=dtype), Functions(dtype=dtype)
    wa, none = smooth("wa", averaged, steps=9, start=3, every=2), smooth("none", plain, steps=9)
    iterates = []
    for _ in range(8):
        walk(none, 1)
        iterates.append(plain.x.numpy())
        walk(wa, 1)
        if len(iterates) < 3:
            assert wa.published() is None
    assert torch.equal(plain.x, averaged.x)
    expected = np.mean([iterates[step - 1] for step in (3, 5, 7)], axis=0)
    got = wa.published()
    assert all(g.dtype is dtype for g in got)
    reference = torch.from_numpy(expected).float().to(dtype).double()
    torch.testing.assert_close(flat(got), reference, rtol=1e-6 if dtype is torch.float32 else 4e-3, atol=0)
    assert not torch.equal(flat(got), averaged.x)


def test_an_average_that_would_never_begin_is_refused():
    with pytest.raises(ValueError, match=r"smoothing\.start: 6.*6 steps"):
        smooth("wa", Functions(), steps=6, start=6)
    smooth("wa", Functions(), steps=7, start=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moving_average_line_by_line_and_training_goes_on_from_the_shadow(dtype):
    """In numpy; the shadow keeps what bf16 weights round away."""
    oracle = Functions(quadratic(1), quadratic(2), dtype)
    smoothed = smooth("ema", oracle, decay=0.7, every=3)
    shadow = oracle.x.numpy().copy()
    homes = [p.data_ptr() for p in oracle.parameters]
    for step in range(1, 8):
        for p, g in zip(oracle.parameters, smoothed.gradient(), strict=True):
            p.sub_(0.05 * g)
        moved = oracle.x.numpy().copy()
        smoothed.stepped()
        if step % 3:
            np.testing.assert_array_equal(oracle.x.numpy(), moved)
            continue
        shadow = 0.7 * shadow + 0.3 * moved
        np.testing.assert_allclose(flat(smoothed.shadow).numpy(), shadow, rtol=1e-5, atol=1e-6)
        rounded = torch.cat([s.flatten() for s in smoothed.shadow]).to(dtype).double()
        assert torch.equal(oracle.x, rounded)
    assert homes == [p.data_ptr() for p in oracle.parameters], "in place: whoever holds the weights sees it"
    assert oracle.told == 7


# --- extrapolation


def test_extrapolation_by_the_paper():
    """Gradients from ahead, steps from where we stand: in numpy for a quadratic."""
    oracle, gamma, lr = Functions(quadratic(1), quadratic(2)), 0.1, 0.05
    smoothed = smooth("extrapolation", oracle, gamma=gamma)
    a, b = (matrix(1) + matrix(2)).numpy(), (vector(101) + vector(102)).numpy()
    x, previous = oracle.x.numpy().copy(), np.zeros(SIZE)
    for _ in range(4):
        previous = a @ (x - gamma * previous) + b
        x = x - lr * previous
        gradient = smoothed.gradient()
        with torch.no_grad():
            for p, g in zip(oracle.parameters, gradient, strict=True):
                p.sub_(lr * g)
                g.fill_(float("nan"))  # an optimizer may use the answer's memory
        smoothed.stepped()
        np.testing.assert_allclose(oracle.x.numpy(), x, rtol=1e-5, atol=1e-6)


def test_extrapolation_sums_the_parts_that_were_asked_apart_and_skips_steps_without_a_gradient():
    oracle, gamma = Functions(), 0.1
    smoothed = smooth("extrapolation", oracle, gamma=gamma)
    total = grad(oracle.f[Part.TOTAL], oracle.x)
    smoothed.gradient(Part.FORGET)
    smoothed.gradient(Part.RETAIN)
    smoothed.stepped()
    smoothed.values(Part.TOTAL, [None])
    smoothed.stepped()
    smoothed.gradient()
    torch.testing.assert_close(oracle.asked[-1][1], oracle.x - gamma * total, rtol=1e-5, atol=1e-5)


def test_extrapolation_by_noise_has_the_length_of_the_gradient():
    oracle, gamma = Functions(), 0.1
    smoothed = smooth("extrapolation", oracle, gamma=gamma, kind="noise")
    close(smoothed.gradient(), grad(oracle.f[Part.TOTAL], oracle.x))
    length = float(grad(oracle.f[Part.TOTAL], oracle.x).norm())
    smoothed.stepped()
    smoothed.gradient()
    ahead = oracle.asked[-1][1] - oracle.x
    assert float(ahead.norm()) == pytest.approx(gamma * length, rel=1e-5)


# --- what holds for every smoothing


@every_variant
def test_smoothing_shows_in_the_cost_and_not_in_the_grade(name, changes):
    for optimizer, grade in (("adam", Grade.FIRST), ("sign_sgd", Grade.COMPRESSED), ("r_adazo", Grade.ZEROTH)):
        inner = Functions()
        outer = Metered(smooth(name, inner, **changes))
        run(optimizer, outer)
        assert outer.queries.grade() is grade
        assert inner.told == 3
        if name not in ("none", "wa", "ema", "extrapolation") and optimizer == "adam":
            assert inner.queries.gradient + inner.queries.curvature > 3


@every_variant
def test_questions_that_are_not_smoothed_are_answered_by_the_oracle_inside(name, changes):
    oracle, plain = Functions(), Functions()
    smoothed = smooth(name, oracle, **changes)
    way = oracle.split(vector(20))
    for part in Part:
        passed = part in (Part.RETAIN, Part.RELEARN)
        if passed or Order.VALUE not in smoothed.smooths:
            places = [None, Displacement.along(way, 0.1)]
            assert torch.equal(smoothed.values(part, places), plain.values(part, places))
            assert smoothed.directional(part, way) == plain.directional(part, way)
        if passed or Order.GRADIENT not in smoothed.smooths:
            assert torch.equal(flat(smoothed.gradient(part)), flat(plain.gradient(part)))
        if passed or Order.CURVATURE not in smoothed.smooths:
            assert torch.equal(flat(smoothed.hvp(part, way)), flat(plain.hvp(part, way)))
    assert torch.equal(flat(smoothed.curvature_sample().gradient), flat(plain.curvature_sample().gradient))


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_questions_to_a_model_leave_its_weights_bit_for_bit(name, changes, dtype):
    asked = llama_oracle(dtype=dtype)
    smoothed = smooth(name, asked, **changes)
    before, way = weights(asked), direction(asked)
    gradient = smoothed.gradient()
    assert [g.dtype for g in gradient] == [p.dtype for p in asked.parameters]
    assert bool(flat(gradient).any())
    loss = smoothed.values(Part.TOTAL, [None, Displacement.along(way, 1e-3)])
    assert loss.dtype is torch.float64 and loss.shape == (2,)
    assert same_bits(before, weights(asked))


@every_variant
@pytest.mark.parametrize("optimizer", ["adam", "r_adazo"])
def test_every_smoothing_with_an_optimizer_on_a_model(name, changes, optimizer):
    inner = llama_oracle()
    start = flat(inner.parameters)
    run(optimizer, smooth(name, inner, **changes))
    end = flat(inner.parameters)
    assert bool(end.isfinite().all())
    assert not torch.equal(start, end)


@every_variant
@pytest.mark.parametrize("optimizer", ["adam", "r_adazo"])
def test_a_run_repeats_bit_for_bit(name, changes, optimizer):
    one, other = Functions(), Functions()
    for oracle in (one, other):
        run(optimizer, smooth(name, oracle, seed=3, **changes))
    assert same_bits(one.parameters, other.parameters)


def run(optimizer: str, oracle: Smoothing | Metered) -> None:
    kind = OPTIMIZERS[optimizer]
    steps = kind(kind.Settings(lr=1e-3), oracle.parameters, Plan(3))
    for _ in range(3):
        steps.step(oracle)
        oracle.stepped()


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_taken_up_again_ends_in_the_same_bits(name, changes, dtype):
    whole = Functions(dtype=dtype)
    straight = smooth(name, whole, **changes)
    walk(straight, 3)
    file = io.BytesIO()
    torch.save({"smoothing": straight.state_dict(), "weights": [p.clone() for p in whole.parameters]}, file)
    walk(straight, 3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Functions(dtype=dtype)
    resumed = smooth(name, again, **changes)
    for p, w in zip(again.parameters, saved["weights"], strict=True):
        p.copy_(w)
    resumed.load_state_dict(saved["smoothing"])
    walk(resumed, 3)
    assert same_bits(whole.parameters, again.parameters)
    ends = [s.published() for s in (straight, resumed)]
    assert [end is None for end in ends] == [name != "wa"] * 2
    assert ends[0] is None or same_bits(*ends)


def test_every_smoothing_names_its_source():
    assert all(kind.source for name, kind in SMOOTHINGS.items() if name != "none")


def test_a_retain_weight_of_zero_leaves_the_smoothed_forget_loss():
    for name, changes in VARIANTS:
        asked = llama_oracle(name="graddiff", retain_weight=0.0)
        smoothed = smooth(name, asked, **changes)
        torch.testing.assert_close(
            flat(smoothed.gradient()), flat(smoothed.gradient(Part.FORGET)), rtol=1e-4, atol=1e-5
        )


def test_places_are_summed_in_fp32():
    weight = [torch.ones(1, dtype=torch.bfloat16)]
    at = Displacement.along(weight, 2.0**-9) + Displacement.along(weight, 2.0**-9)
    assert float(place(weight, at)[0]) == 1 + 2 * 2.0**-9
    assert math.isclose(float(weight[0]), 1.0)
