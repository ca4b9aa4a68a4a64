"""What every optimizer must do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from suite.optimizers import Optimizer, Run
from suite.optimizers.base import KINDS
from suite.oracle.base import Displacement, Grade, Oracle, Part, Tensors, Wrapping
from suite.smoothing import SMOOTHINGS
from suite.spec.trial import ORDERS
from suite.testing.base import AxisConformance, Case
from suite.testing.functions import Functions, quadratic
from suite.testing.language_model import copies, same_bits
from suite.testing.runs import LOST, MIDDLE, STEPS, Trained, check_moves, check_repeats, check_resumed, run_of, trained

DOWN = 200
"""Steps in which the loss has to fall."""


@pytest.mark.filterwarnings(LOST)
class OptimizerConformance(AxisConformance):
    """Tests of an optimizer: `entry = Mine`."""

    base = Optimizer

    def test_it_declares_grade_queries_and_source(self, case: Case) -> None:
        for name in ("grade", "queries_per_step", "source"):
            assert getattr(case.kind, name, None), f"{case.what}: set the class attribute `{name}`"
        assert isinstance(case.kind.grade, Grade), f"{case.what}.grade: take one of `suite.oracle.base.Grade`"

    def test_its_grade_is_that_of_its_queries(self, case: Case) -> None:
        counted = run(case).steps().metered.queries
        assert counted.grade() is case.kind.grade, (
            f"{case.what}.grade is {case.kind.grade}, but its queries are {_counts(counted)}, with "
            f"{sorted(counted.bits) or 'no'} bits announced by `compressed`: that is the grade {counted.grade()}"
        )

    def test_queries_per_step_is_what_is_counted(self, case: Case) -> None:
        zo = case.kind.Settings.model_fields.get("zo")
        changes: dict[str, Any] = {}
        if zo is not None and "samples" in getattr(zo.annotation, "model_fields", {}):
            changes = {"zo": {"samples": 3}}
        for more in ({}, changes):
            settings, counted = case.settings(**more), run(case, **more).steps().metered.queries
            try:
                declared = case.kind.queries(settings, STEPS)
            except (KeyError, ValueError) as error:
                raise AssertionError(
                    f"{case.what}.queries_per_step: `{case.kind.queries_per_step}` is not understood ({error}). Write "
                    "it as `1 gradient`, `2q value` or `1 gradient + 1 curvature every k`, with the kinds "
                    f"{', '.join(KINDS)}, or override `queries`"
                ) from error
            assert _counts(counted) == {kind: declared[kind] for kind in KINDS}, (
                f"{case.what}.queries_per_step says `{case.kind.queries_per_step}`, which is {declared} in "
                f"{STEPS} steps{' with 3 samples' if more else ''}, but counted are {_counts(counted)}. Correct "
                "`queries_per_step`, or override `queries`"
            )

    def test_a_run_repeats_bit_for_bit(self, case: Case) -> None:
        check_repeats(case.what, lambda: run(case))

    def test_what_a_zeroth_order_optimizer_draws_depends_on_the_seed_of_the_run(self, case: Case) -> None:
        if case.kind.grade in (Grade.ZEROTH, Grade.HYBRID):
            one, other = (run(case, seed=seed).steps().weights() for seed in (1, 2))
            assert not same_bits(one, other), (
                f"{case.what}: runs with two seeds end in the same weights. Its directions have to be drawn "
                "with a key of `run.seed`"
            )

    def test_the_loss_goes_down(self, case: Case) -> None:
        """On a quadratic with the example's settings; switch it off for what is meant to rise."""
        oracle = Functions(quadratic(1), quadratic(2))
        optimizer = case.kind(case.settings(), oracle.parameters, Run(DOWN))
        before = float(oracle.values(Part.TOTAL, [None]))
        for _ in range(DOWN):
            optimizer.step(oracle)
            oracle.stepped()
        after = float(oracle.values(Part.TOTAL, [None]))
        assert after < before - 0.05, (
            f"{case.what}: a quadratic loss goes from {before:.3g} to {after:.3g} in {DOWN} steps. The weights "
            "move by -lr times the `direction`: is it that of the gradient? If so, choose a better `lr` in `example`"
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_probing_leaves_the_weights_untouched(self, case: Case, dtype: torch.dtype) -> None:
        """Every query of a step finds the bits with which the step began."""
        trial = run(case, dtype)
        watched = Watched(trial.smoothed, case.what)
        for _ in range(STEPS):
            watched.began = copies(trial.oracle.parameters)
            trial.optimizer.step(watched)
            watched.stepped()

    @pytest.mark.parametrize("directed", [False, True], ids=["moved", "directed"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    def test_a_run_goes_on_from_its_state_bit_for_bit(self, case: Case, dtype: torch.dtype, directed: bool) -> None:
        """Also where it is a part of another optimizer, which asks for its direction alone."""
        more = {"lr": 0.02} if dtype is torch.bfloat16 else {}  # so that bf16 weights move
        if not directed or case.kind.direction is not Optimizer.direction:
            check_resumed(case.what, lambda made: made.optimizer, lambda: run(case, dtype, directed=directed, **more))

    def test_a_run_on_a_model_goes_on_from_its_state_bit_for_bit(self, case: Case) -> None:
        check_resumed(case.what, lambda run: run.optimizer, lambda: trained(optimizer=case), MIDDLE)

    def test_averages_of_bf16_weights_are_fp32(self, case: Case) -> None:
        """In bf16 an average of decay 0.999 never moves: what a step adds is less than half of its last bit."""
        trial = run(case, torch.bfloat16, lr=0.1)
        before = copies(trial.oracle.parameters)
        trial.steps()
        name, optimizer = case.what, trial.optimizer
        assert all(p.dtype is torch.bfloat16 for p in trial.oracle.parameters)
        assert not same_bits(before, trial.oracle.parameters), f"{name}: bf16 weights do not move at lr=0.1"
        for attribute in optimizer.state:
            for tensor in _tensors(getattr(optimizer, attribute)):
                assert tensor.dtype not in (torch.bfloat16, torch.float16), (
                    f"{name}.{attribute} is {tensor.dtype}: make it with `zeros` of suite.optimizers.first_order"
                )

    @pytest.mark.parametrize("smoothing", ["none", "sam", "rs", "ema"])
    def test_it_moves_a_model_with_smoothings_that_it_goes_with(self, case: Case, smoothing: str) -> None:
        kind = SMOOTHINGS[smoothing]
        if kind.smooths & ORDERS[case.kind.grade]:
            smoothed = trained(smoothing=Case(kind), optimizer=case)
            check_moves(f"{case.what} with the smoothing {smoothing}", smoothed)
            assert smoothed.metered.queries.grade() is case.kind.grade


class Watched(Wrapping):
    """An oracle that fails where the weights are not those that a step began with."""

    def __init__(self, oracle: Oracle, name: str) -> None:
        super().__init__(oracle)
        self.name = name
        self.began: Tensors = copies(oracle.parameters)

    def _look(self, query: str) -> None:
        assert same_bits(self.began, self.parameters), (
            f"{self.name} has moved the weights before it queries {query}. Query elsewhere with a `Displacement`: "
            "adding to the weights and subtracting again leaves about half of them changed by rounding"
        )

    def values(self, part: Part, displacements: Any) -> Tensor:
        self._look("values")
        return super().values(part, displacements)

    def gradient(self, part: Part = Part.TOTAL, at: Displacement | None = None) -> list[Tensor]:
        self._look("gradient")
        return super().gradient(part, at)

    def directional(self, part: Part, direction: Tensors, at: Displacement | None = None) -> float:
        self._look("directional")
        return super().directional(part, direction, at)

    def hvp(self, part: Part, direction: Tensors, at: Displacement | None = None) -> list[Tensor]:
        self._look("hvp")
        return super().hvp(part, direction, at)


def run(case: Case, dtype: torch.dtype = torch.float32, **more: Any) -> Trained:
    """A run on functions of eight numbers."""
    return run_of(Functions(dtype=dtype), optimizer=case, **more)


def _counts(queries: Any) -> dict[str, int]:
    return {kind: getattr(queries, kind) for kind in KINDS}


def _tensors(value: object) -> Iterator[Tensor]:
    """Tensors of an attribute, those of torch's own optimizers left out: torch keeps its averages as it does."""
    if isinstance(value, Optimizer):
        yield from (tensor for name in value.state for tensor in _tensors(getattr(value, name)))
    elif isinstance(value, list):
        yield from (tensor for each in value for tensor in _tensors(each))
    elif isinstance(value, Tensor):
        yield value
