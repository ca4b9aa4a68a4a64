"""The oracle against closed forms, torch.func and bit-for-bit comparison."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.models.likelihood import mean_nll
from suite.objectives import OBJECTIVES
from suite.optimizers import Run
from suite.oracle.base import Displacement, Diverged, Grade, Metered, Part, Queries, norm
from suite.oracle.loss import LossOracle
from suite.smoothing import SMOOTHINGS
from tests.support import runs
from tests.support.language_model import direction, oracle, same_bits, sum_of_parts, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_questions_leave_the_weights_as_they_were_bit_for_bit(dtype):
    loss_oracle = oracle(dtype=dtype)
    before, way = weights(loss_oracle), direction(loss_oracle)
    loss_oracle.values(Part.TOTAL, [Displacement.along(way, 1e-2), None, Displacement.along(way, -1e-2)])
    loss_oracle.gradient(Part.FORGET, Displacement.along(way, 0.1) + Displacement.along(way, 1e-3))
    loss_oracle.curvature_sample()
    loss_oracle.hvp(Part.TOTAL, [w.to(dtype) for w in way])
    assert same_bits(before, weights(loss_oracle))


def test_the_naive_way_would_not_have():
    """The reason for the copy: +r, -2r, +r in bf16 leaves a large share of the weights changed."""
    naive = oracle(dtype=torch.bfloat16)
    before, way = weights(naive), direction(naive)
    with torch.no_grad():
        for scale in (1e-2, -2e-2, 1e-2):
            for p, w in zip(naive.parameters, way, strict=True):
                p.add_(w.to(p.dtype), alpha=scale)
    changed = sum(int((a != b).sum()) for a, b in zip(before, weights(naive), strict=True))
    assert changed > 0.2 * sum(p.numel() for p in naive.parameters)


def test_weights_come_back_after_an_error_in_mid_question():
    loss_oracle = oracle()
    before = weights(loss_oracle)
    huge = Displacement.along([torch.full_like(p, torch.inf) for p in loss_oracle.parameters])
    with pytest.raises(Diverged):
        loss_oracle.values(Part.TOTAL, [huge])
    assert same_bits(before, weights(loss_oracle))


def test_values_are_the_loss_at_the_displaced_place():
    loss_oracle, way = oracle(), None
    way = direction(loss_oracle)
    got = loss_oracle.values(Part.TOTAL, [None, Displacement.along(way, 0.01)])
    with torch.no_grad():
        by_hand = [float(sum_of_parts(loss_oracle))]
        for p, w in zip(loss_oracle.parameters, way, strict=True):
            p.add_(w, alpha=0.01)
        by_hand.append(float(sum_of_parts(loss_oracle)))
    assert got.dtype is torch.float64
    assert got.tolist() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("part", list(Part))
def test_gradient_agrees_with_backward_and_with_differences(part):
    loss_oracle = oracle()
    loss = {Part.FORGET: lambda: loss_oracle.objective.forget(loss_oracle.model, loss_oracle.batch),
            Part.RETAIN: lambda: loss_oracle.objective.retain(loss_oracle.model, loss_oracle.batch),
            Part.RELEARN: lambda: mean_nll(loss_oracle.model, loss_oracle.batch.forget),
            Part.TOTAL: lambda: sum_of_parts(loss_oracle)}[part]  # fmt: skip
    loss().backward()
    expected = [p.grad.clone() for p in loss_oracle.parameters]
    loss_oracle.model.zero_grad()
    got = loss_oracle.gradient(part)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)
    way = direction(loss_oracle)
    slope = sum(float((g * w).sum()) for g, w in zip(got, way, strict=True))
    ahead, behind = loss_oracle.values(part, [Displacement.along(way, 1e-3), Displacement.along(way, -1e-3)]).tolist()
    assert (ahead - behind) / 2e-3 == pytest.approx(slope, rel=0.05)  # curvature and fp32


def test_forward_mode_derivative_is_the_gradient_along_the_direction():
    loss_oracle = oracle()
    way = direction(loss_oracle)
    expected = sum(float((g * w).sum()) for g, w in zip(loss_oracle.gradient(Part.TOTAL), way, strict=True))
    assert loss_oracle.directional(Part.TOTAL, way) == pytest.approx(expected, rel=1e-4)


def test_hessian_vector_product_is_the_gradients_slope():
    loss_oracle = oracle()
    way = direction(loss_oracle)
    got = loss_oracle.hvp(Part.TOTAL, way)
    ahead = loss_oracle.gradient(Part.TOTAL, Displacement.along(way, 1e-3))
    behind = loss_oracle.gradient(Part.TOTAL, Displacement.along(way, -1e-3))
    expected = [(a - b) / 2e-3 for a, b in zip(ahead, behind, strict=True)]
    difference = float(norm([g - e for g, e in zip(got, expected, strict=True)]))
    assert difference < 0.02 * float(norm(expected))


def test_curvature_samples_have_the_gauss_newton_diagonal_as_their_mean():
    """count * g^2 against the Gauss-Newton diagonal, exact by going through every label of every position."""
    kind = OBJECTIVES["gradient_ascent"]  # forget text alone
    loss_oracle = LossOracle(runs.llama(0), kind(kind.Settings()))
    loss_oracle.batch = runs.batch(0)
    tokens, model = loss_oracle.batch.forget, loss_oracle.model
    logits = model(input_ids=tokens.ids).logits[:, :-1].float()
    logprobs = logits.log_softmax(-1)
    positions = tokens.answer[:, 1:].nonzero().tolist()
    exact = [torch.zeros_like(p) for p in loss_oracle.parameters]
    for row, place in positions:
        for label in range(logits.shape[-1]):
            gradient = torch.autograd.grad(logprobs[row, place, label], loss_oracle.parameters, retain_graph=True)
            chance = float(logprobs[row, place, label].detach().exp())
            for e, g in zip(exact, gradient, strict=True):
                e.add_(g.square(), alpha=chance / len(positions))
    mean = [torch.zeros_like(p) for p in loss_oracle.parameters]
    draws = 2000
    for _ in range(draws):
        sample = loss_oracle.curvature_sample()
        assert sample.count == len(positions)
        for m, g in zip(mean, sample.gradient, strict=True):
            m.add_(g.square(), alpha=sample.count / draws)
    ratio = sum(float(m.sum()) for m in mean) / sum(float(e.sum()) for e in exact)
    assert ratio == pytest.approx(1.0, abs=0.05)  # the trace; one draw's is spread by 36 %: 2000 make 6 sigma
    flat = [torch.cat([t.flatten() for t in ts]) for ts in (mean, exact)]
    assert float(torch.corrcoef(torch.stack(flat))[0, 1]) > 0.98


def test_no_retain_weight_means_that_retain_text_is_never_read():
    loss_oracle = oracle(name="graddiff", retain_weight=0.0)
    loss_oracle.gradient()
    assert loss_oracle.queries.tokens == loss_oracle.batch.forget.size


@pytest.mark.parametrize(
    ("queries", "grade"),
    [
        (Queries(value=2), Grade.ZEROTH),
        (Queries(directional=1), Grade.ZEROTH),
        (Queries(gradient=1), Grade.FIRST),
        (Queries(gradient=1, bits={1}), Grade.COMPRESSED),
        (Queries(gradient=1, bits={8, 32}), Grade.FIRST),
        (Queries(gradient=1, curvature=1), Grade.SECOND),
        (Queries(value=2, gradient=1), Grade.HYBRID),
    ],
)
def test_grade_follows_from_what_was_asked(queries, grade):
    assert queries.grade() is grade


def test_smoothing_shows_in_the_cost_and_not_in_the_grade():
    inner = oracle()
    outer = Metered(SMOOTHINGS["sam"](inner, SMOOTHINGS["sam"].Settings(), Run(1)))
    outer.gradient()
    assert (outer.queries.gradient, inner.queries.gradient) == (1, 3)
    assert outer.queries.grade() is Grade.FIRST


def test_sharpness_aware_gradient_is_that_of_the_worst_point():
    """Against the formula, with weights moved by hand."""
    rho = 0.05
    loss_oracle = oracle()
    got = SMOOTHINGS["sam"](loss_oracle, SMOOTHINGS["sam"].Settings(rho=rho), Run(1)).gradient()
    by_hand = oracle()
    ascent = by_hand.gradient(Part.FORGET)
    length = float(torch.cat([a.flatten() for a in ascent]).norm())
    retain = by_hand.gradient(Part.RETAIN)
    with torch.no_grad():
        for p, a in zip(by_hand.parameters, ascent, strict=True):
            p.add_(a, alpha=rho / length)
    forget = by_hand.gradient(Part.FORGET)
    for g, f, r in zip(got, forget, retain, strict=True):
        torch.testing.assert_close(g, f + r, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_is_told_before_the_weights_move():
    loss_oracle = oracle()
    with torch.no_grad():
        loss_oracle.parameters[0].fill_(float("nan"))
    with pytest.raises(Diverged):
        loss_oracle.gradient()
    with pytest.raises(Diverged):
        loss_oracle.values(Part.TOTAL, [None])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=3))
def test_terms_of_a_displacement_add_up(scales):
    loss_oracle = oracle()
    way = direction(loss_oracle)
    whole = None
    for scale in scales:
        whole = Displacement.along(way, scale) + whole
    one, other = loss_oracle.values(Part.RETAIN, [whole, Displacement.along(way, sum(scales))]).tolist()
    assert one == pytest.approx(other, rel=1e-4)
