"""What every smoothing must do, on functions of a vector and on a language model of two thousand weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.optimizers import Run
from suite.oracle.base import Displacement, Order, Part
from suite.oracle.loss import LossOracle
from suite.smoothing import SMOOTHINGS, Smoothing
from suite.spec.trial import ORDERS
from suite.testing.base import AxisConformance, Case
from suite.testing.functions import Functions, flat, vector
from suite.testing.language_model import copies, full_batch, llama, same_bits
from suite.testing.runs import (
    HYBRID,
    LOST,
    MIDDLE,
    NPO,
    ONE_PER_GRADE,
    STEPS,
    Trained,
    check_moves,
    check_repeats,
    check_resumed,
    objective_of,
    run_of,
    trained,
)


@pytest.mark.filterwarnings(LOST)
class SmoothingConformance(AxisConformance):
    """Tests of a smoothing: `entry = Mine`."""

    base = Smoothing

    def test_it_names_its_source(self, case: Case) -> None:
        assert case.kind.source or case.kind is SMOOTHINGS["none"], (
            f"{case.what}: set the class attribute `source`, where the method comes from"
        )

    def test_the_grade_stays_that_of_the_optimizer(self, case: Case) -> None:
        for optimizer in ONE_PER_GRADE:
            run = run_of(Functions(), case, optimizer).steps()
            assert run.metered.queries.grade() is optimizer.kind.grade
            assert run.oracle.steps == STEPS, f"{case.what}.stepped has to call `super().stepped()`, which passes it on"

    def test_queries_that_it_does_not_change_are_answered_by_the_oracle_inside(self, case: Case) -> None:
        plain = Functions()
        smoothed, way = around(Functions(), case), plain.split(vector(20))
        places = [None, Displacement.along(way, 0.1)]
        name = case.what
        for part in Part:
            for order in Order:
                if order in case.kind.smooths and part in (Part.FORGET, Part.TOTAL):
                    continue
                says = (
                    f"{name} changes a query of the order {order.name} of the {part} loss. Retain and relearn queries "
                    "are passed on, as `ForgetSmoothing` does; `smooths` names the orders of the others that change"
                )
                match order:
                    case Order.VALUE:
                        assert torch.equal(smoothed.values(part, places), plain.values(part, places)), says
                        assert smoothed.directional(part, way) == plain.directional(part, way), says
                    case Order.GRADIENT:
                        assert torch.equal(flat(smoothed.gradient(part)), flat(plain.gradient(part))), says
                    case Order.CURVATURE:
                        assert torch.equal(flat(smoothed.hvp(part, way)), flat(plain.hvp(part, way))), says
        one, other = (flat(oracle.curvature_sample().gradient) for oracle in (smoothed, plain))
        assert torch.equal(one, other), f"{name}: `curvature_sample` is of the model's own loss. Pass it on"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_queries_leave_the_weights_of_a_model_bit_for_bit(self, case: Case, dtype: torch.dtype) -> None:
        oracle = LossOracle(llama(dtype=dtype), objective_of(NPO, dtype))
        oracle.batch = full_batch()
        smoothed, before = around(oracle, case), copies(oracle.parameters)
        gradient = smoothed.gradient()
        assert [g.dtype for g in gradient] == [p.dtype for p in oracle.parameters], (
            f"{case.what}.gradient has to be typed like the parameters. Sum with `combined(..., like=...)`"
        )
        assert bool(flat(gradient).any())
        draw = torch.Generator().manual_seed(3)
        way = [torch.randn(p.shape, generator=draw) for p in oracle.parameters]
        loss = smoothed.values(Part.TOTAL, [None, Displacement.along(way, 1e-3)])
        assert loss.dtype is torch.float64 and loss.shape == (2,), (
            f"{case.what}.values has to return float64 numbers, one per displacement"
        )
        assert same_bits(before, oracle.parameters), (
            f"{case.what} leaves the weights changed. Query elsewhere with `at=`; the weights never move"
        )

    def test_a_retain_weight_of_zero_leaves_the_smoothed_forget_loss(self, case: Case) -> None:
        oracle = LossOracle(llama(), objective_of(NPO, retain_weight=0.0))
        oracle.batch = full_batch()
        smoothed = around(oracle, case)
        torch.testing.assert_close(
            flat(smoothed.gradient()), flat(smoothed.gradient(Part.FORGET)), rtol=1e-4, atol=1e-5
        )

    def test_a_run_repeats_bit_for_bit(self, case: Case) -> None:
        check_repeats(case.what, lambda: run_of(Functions(), case, HYBRID))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_a_run_goes_on_from_its_state_bit_for_bit(self, case: Case, dtype: torch.dtype) -> None:
        def made() -> Trained:
            return run_of(Functions(dtype=dtype), case, HYBRID, lr=0.02)

        check_resumed(case.what, lambda run: run.smoothed, made)

    def test_a_run_on_a_model_goes_on_from_its_state_bit_for_bit(self, case: Case) -> None:
        def made() -> Trained:
            return trained(smoothing=case, optimizer=HYBRID)

        check_resumed(case.what, lambda run: run.smoothed, made, MIDDLE)

    @pytest.mark.parametrize("optimizer", ONE_PER_GRADE, ids=lambda case: case.name)
    def test_it_moves_a_model_with_an_optimizer_of_each_grade(self, case: Case, optimizer: Case) -> None:
        if case.kind.smooths & ORDERS[optimizer.kind.grade]:
            run = trained(smoothing=case, optimizer=optimizer)
            check_moves(f"{case.what} with {optimizer.name}", run)
            ends = run.smoothed.final_weights()
            assert ends is None or [w.shape for w in ends] == [p.shape for p in run.oracle.parameters]


def around(oracle: Any, case: Case) -> Smoothing[Any]:
    """The smoothing of an oracle."""
    made: Smoothing[Any] = case.kind(oracle, case.settings(), Run(STEPS))
    return made
