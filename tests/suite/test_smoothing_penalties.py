"""Sharpness-aware smoothings and penalties on the gradient: closed forms, autograd on the whole scalar, numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from suite.oracle.base import Displacement, Part, norm
from suite.smoothing.sharpness_aware import adaptive_ascent
from suite.testing.functions import SIZE, Function, Functions, flat, matrix, quadratic, quartic, vector
from tests.support.functions import close, grad, smooth
from tests.support.language_model import oracle as llama_oracle

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
    for _, x in oracle.evaluated:
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
    loss_oracle = llama_oracle()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        loss = loss_oracle.objective.forget(loss_oracle.model, loss_oracle.batch)
        first = torch.autograd.grad(loss, loss_oracle.parameters, create_graph=True)
        penalised_loss = loss + 2.0 * torch.cat([g.flatten() for g in first]).norm()
        expected = flat(torch.autograd.grad(penalised_loss, loss_oracle.parameters))
    close(smooth("gp", loss_oracle, weight=2.0).gradient(Part.FORGET), expected, 1e-4)
    close(smooth("gp", loss_oracle, weight=2.0, form="difference", radius=3e-4).gradient(Part.FORGET), expected, 0.02)
    assert float((expected - flat(loss_oracle.gradient(Part.FORGET))).norm() / expected.norm()) > 0.1


def test_curvature_penalty_on_a_model_is_the_slope_of_its_value():
    """The penalty from gradients of the model at two sides along a direction, against its gradient."""
    loss_oracle, rho = llama_oracle(), 0.05

    def penalty(at: Displacement) -> float:
        g = loss_oracle.gradient(Part.FORGET, at)
        ahead = loss_oracle.gradient(Part.FORGET, Displacement.along(g, rho / float(norm(g))) + at)
        return float((flat(ahead) - flat(g)).norm())

    exact, difference = (
        flat(smooth("cp", loss_oracle, weight=1.0, rho=rho, form=form, radius=3e-4).gradient(Part.FORGET))
        - flat(loss_oracle.gradient(Part.FORGET))
        for form in ("exact", "difference")
    )
    assert float((exact - difference).norm() / exact.norm()) < 0.02
    way = [
        w.to(p.dtype) for w, p in zip(split_like(exact, loss_oracle.parameters), loss_oracle.parameters, strict=True)
    ]
    h = 3e-4 / float(norm(way))
    slope = (penalty(Displacement.along(way, h)) - penalty(Displacement.along(way, -h))) / (2 * h)
    assert slope == pytest.approx(float(exact @ exact), rel=0.01)


def split_like(x: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [part.view_as(t) for part, t in zip(x.split([t.numel() for t in like]), like, strict=True)]
