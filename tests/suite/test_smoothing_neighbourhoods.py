"""Smoothings over a neighbourhood or an attacker's losses: closed forms, differences, and line-by-line numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suite.oracle.base import Displacement, Part, norm
from suite.smoothing.universal_sam import sharpness, sharpness_slopes
from suite.testing.functions import SIZE, Function, Functions, flat, matrix, quadratic, quartic, vector
from tests.support.functions import close, grad, smooth
from tests.support.language_model import direction
from tests.support.language_model import oracle as llama_oracle

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
        oracle.evaluated.clear()
        smoothed.gradient()
        (_, total), (_, forget), (_, retain) = oracle.evaluated
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
    oracle.evaluated.clear()
    smoothed.gradient(Part.FORGET)
    torch.testing.assert_close(oracle.evaluated[-1][1], expected, rtol=1e-5, atol=1e-5)


# --- invariance


def invariant(oracle: Functions, weight: float) -> Function:
    """The penalty with its dummy scale w differentiated at 1, as the paper writes it."""

    def penalised_loss(x: torch.Tensor) -> torch.Tensor:
        total = oracle.f[Part.FORGET](x)
        for part in (Part.RELEARN, Part.RETAIN):
            slope = torch.func.grad(lambda w, part=part: oracle.f[part](w * x))(torch.ones((), dtype=torch.float64))
            total = total + weight * slope**2
        return total

    return penalised_loss


def test_invariance_is_the_squared_slope_along_the_scale_of_the_weights():
    oracle = Functions()
    irm, penalised_loss = smooth("irm", oracle, weight=0.2), invariant(oracle, 0.2)
    way = oracle.split(vector(20))
    places = [None, Displacement.along(way, 0.1)]
    expected = [float(penalised_loss(oracle.x)), float(penalised_loss(oracle.x + 0.1 * flat(way)))]
    assert irm.values(Part.FORGET, places).tolist() == pytest.approx(expected, rel=1e-5)
    close(irm.gradient(Part.FORGET), grad(penalised_loss, oracle.x))
    close(
        irm.gradient(at=places[1]),
        grad(penalised_loss, oracle.x + 0.1 * flat(way)) + flat(oracle.gradient(Part.RETAIN, places[1])),
    )


def test_invariance_of_a_model_is_the_slope_of_its_values():
    loss_oracle = llama_oracle()
    irm = smooth("irm", loss_oracle, weight=0.5)
    way = direction(loss_oracle)
    way = [w / float(norm(way)) for w in way]
    ahead, behind = irm.values(Part.TOTAL, [Displacement.along(way, 0.01), Displacement.along(way, -0.01)]).tolist()
    slope = (ahead - behind) / 0.02
    assert float(flat(irm.gradient()) @ flat(way)) == pytest.approx(slope, rel=0.02)
    assert irm.directional(Part.TOTAL, way) == pytest.approx(slope, rel=0.02)
