"""What every objective must do, on a language model of two thousand weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from suite.models.encoding import Tokens
from suite.objectives import Objective
from suite.oracle.base import Displacement, Part, norm
from suite.oracle.batch import Batch
from suite.oracle.directions import LowRank
from suite.oracle.loss import LossOracle
from suite.oracle.replicas import can_replicate
from suite.testing.base import AxisConformance, Case
from suite.testing.functions import flat
from suite.testing.language_model import full_batch, llama
from suite.testing.runs import (
    LOST,
    MIDDLE,
    ONE_PER_GRADE,
    check_moves,
    check_repeats,
    check_resumed,
    objective_of,
    trained,
)


@pytest.mark.filterwarnings(LOST)
class ObjectiveConformance(AxisConformance):
    """Tests of an objective: `entry = Mine`."""

    base = Objective

    def test_losses_are_float64_numbers(self, case: Case) -> None:
        for retain in retains(case):
            made, model, b = objective_of(case, retain=retain, retain_weight=0.7), llama(), full_batch()
            for name, loss in (("forget", made.forget(model, b)), ("retain", made.retain(model, b))):
                assert loss.dtype is torch.float64 and loss.shape == (), (
                    f"{case.what}: the {name} loss with retain={retain} is {loss.dtype} of shape "
                    f"{tuple(loss.shape)}. Return a 0-dimensional float64 tensor: sum log-probabilities in float64"
                )

    def test_values_gradient_and_forward_derivative_are_those_of_one_function(self, case: Case) -> None:
        """A zeroth-order optimizer uses values alone: no part of a loss may be missing from the gradient."""
        oracle = oracle_of(case, retain_weight=0.7)
        for part in (Part.FORGET, Part.RETAIN):
            gradient = oracle.gradient(part)
            length = float(norm(gradient))
            assert length, f"{case.what}: the gradient of its {part} loss is 0 with the settings of `example`"
            way = [g / length for g in gradient]
            ahead, behind = oracle.values(part, [Displacement.along(way, s) for s in (3e-3, -3e-3)]).tolist()
            slopes = {"values rise by": (ahead - behind) / 6e-3, "forward derivative": oracle.directional(part, way)}
            assert list(slopes.values()) == pytest.approx([length, length], rel=0.02), (
                f"{case.what}: along its gradient the {part} loss has the slope {length:.4g} by that gradient, "
                f"but its {', its '.join(f'{k} {v:.4g}' for k, v in slopes.items())}. They have to be those of one "
                "function: leave out `detach` and `no_grad`, or implement the function that has this gradient"
            )
            assert slopes["forward derivative"] == pytest.approx(length, rel=1e-3)

    def test_hessian_vector_products_are_the_slope_of_the_gradient(self, case: Case) -> None:
        oracle = oracle_of(case)
        draw = torch.Generator().manual_seed(0)
        way = [torch.randn(p.shape, generator=draw) for p in oracle.parameters]
        got = flat(oracle.hvp(Part.FORGET, way))
        ahead, behind = (flat(oracle.gradient(Part.FORGET, Displacement.along(way, s))) for s in (1e-3, -1e-3))
        assert float((got - (ahead - behind) / 2e-3).norm()) < 0.05 * float(got.norm()), (
            f"{case.what}: a Hessian-vector product of its forget loss is not the slope of its gradient. "
            "Everything in the loss has to be differentiable twice"
        )

    def test_every_position_that_goes_through_the_model_is_counted(self, case: Case) -> None:
        oracle = oracle_of(case, retain_weight=0.5)
        seen: list[int] = []
        oracle.model.model.embed_tokens.register_forward_hook(lambda _, ids, __: seen.append(ids[0].numel()))
        for part in (Part.FORGET, Part.RETAIN, Part.TOTAL, Part.RELEARN):
            oracle.gradient(part)
            assert oracle.queries.tokens == sum(seen), (
                f"{case.what}: {oracle.queries.tokens} tokens are counted and {sum(seen)} went through the "
                f"model, up to a gradient of the {part} loss. Override `tokens(part, batch)`"
            )
        oracle.stepped()
        assert oracle.queries.tokens == sum(seen), (
            f"{case.what}.stepped has to return the number of tokens that it passes through the model"
        )
        oracle.curvature_sample()
        assert oracle.queries.tokens == sum(seen)

    def test_bf16_models_have_bf16_gradients_of_nearly_the_same_loss(self, case: Case) -> None:
        exact, oracle = oracle_of(case), oracle_of(case, torch.bfloat16)
        assert all(g.dtype is torch.bfloat16 for g in oracle.gradient())
        (rounded,), (value,) = (each.values(Part.FORGET, [None]).tolist() for each in (oracle, exact))
        assert rounded == pytest.approx(value, rel=0.1), (
            f"{case.what}: the forget loss is {rounded:.4g} of a bf16 model and {value:.4g} of the same in fp32"
        )

    def test_a_model_may_be_any_callable(self, case: Case) -> None:
        model, b, made = llama(), full_batch(), objective_of(case)

        def plain(*, input_ids: Tensor, **options: Any) -> SimpleNamespace:
            assert options.keys() <= {"use_cache", "output_hidden_states"}, (
                f"{case.what} calls the model with {', '.join(options)}. Give it `input_ids` and `use_cache`, and "
                "`output_hidden_states` where it reads them"
            )
            out = model(input_ids=input_ids, **options)
            return SimpleNamespace(logits=out.logits, hidden_states=out.hidden_states)

        for loss in (made.forget, made.retain):
            assert float(loss(plain, b).detach()) == pytest.approx(float(loss(model, b).detach()), rel=1e-6)

    def test_padding_counts_nowhere(self, case: Case) -> None:
        """Published code averages retain KL, UNDIAL, PDU and RMU over padding too."""
        model, b = llama(), full_batch()
        padded = Batch(
            longer(b.forget), longer(b.retain), b.forget_reference,
            longer(b.forget_refusals), b.forget_refusals_reference, longer(b.retain_refusals),
        )  # fmt: skip
        for retain in retains(case):
            made = objective_of(case, retain=retain, retain_weight=1.0)
            for name, loss in (("forget", made.forget), ("retain", made.retain)):
                assert float(loss(model, padded).detach()) == pytest.approx(float(loss(model, b).detach()), rel=1e-5), (
                    f"{case.what}: the {name} loss with retain={retain} changes with the padding of the batch. "
                    "Average over the answers' tokens, `answer_mean` of suite.models.likelihood"
                )

    def test_low_rank_places_are_answered_together_as_one_by_one(self, case: Case) -> None:
        oracle = oracle_of(case)
        ways = [LowRank(oracle.parameters, 2, (seed,)) for seed in (1, 2)]
        places = [None, *(Displacement.along(way, s) for way in ways for s in (1e-2, -1e-2))]
        assert can_replicate(oracle.model, places)
        together = oracle.values(Part.TOTAL, places)
        alone = torch.cat([oracle.values(Part.TOTAL, [place]) for place in places])
        torch.testing.assert_close(
            together, alone, rtol=5e-6, atol=2e-6,
            msg=lambda text: f"{case.what}: losses at several places depend on each other. {text}",
        )  # fmt: skip

    def test_it_reads_no_more_of_a_batch_than_it_declares(self, case: Case) -> None:
        for retain in retains(case):
            settings, b = case.settings(retain=retain, retain_weight=0.7), full_batch()
            kind = case.kind
            reads = replace(
                b,
                forget_reference=b.forget_reference if kind.uses_forget_reference else None,
                forget_refusals=b.forget_refusals if kind.uses_forget_refusals else None,
                forget_refusals_reference=b.forget_refusals_reference
                if kind.uses_forget_refusals and kind.uses_forget_reference
                else None,
                retain_refusals=b.retain_refusals if kind.needs_retain_refusals(settings) else None,
            )
            made = objective_of(case, retain=retain, retain_weight=0.7)
            if not kind.needs_reference(settings):
                made = kind(settings, None)
            for name, loss in (("forget", made.forget), ("retain", made.retain)):
                try:
                    loss(llama(), reads)
                except Exception as error:
                    raise AssertionError(
                        f"{kind.__name__}: the {name} loss with retain={retain} fails with what it declares that it "
                        f"reads ({error!r}). Set `uses_forget_reference` or `uses_forget_refusals`, or override "
                        "`needs_reference` or `needs_retain_refusals`"
                    ) from error

    def test_retain_kl_needs_the_old_model_and_is_refused_without(self, case: Case) -> None:
        if "kl" in retains(case):
            settings = case.settings(retain="kl", retain_weight=1.0)
            assert case.kind.needs_reference(settings), f"{case.what}.needs_reference: retain=kl needs it"
            with pytest.raises(ValueError, match="reference"):
                case.kind(settings, None)

    def test_a_run_repeats_and_goes_on_from_its_state_bit_for_bit(self, case: Case) -> None:
        check_repeats(case.what, lambda: trained(case))
        check_resumed(case.what, lambda run: run.oracle.objective, lambda: trained(case), MIDDLE)

    @pytest.mark.parametrize("optimizer", ONE_PER_GRADE, ids=lambda case: case.name)
    def test_it_moves_a_model_with_an_optimizer_of_each_grade(self, case: Case, optimizer: Case) -> None:
        check_moves(f"{case.what} with {optimizer.name}", trained(case, optimizer=optimizer))


def oracle_of(case: Case, dtype: torch.dtype = torch.float32, **changes: Any) -> LossOracle:
    oracle = LossOracle(llama(dtype=dtype), objective_of(case, **changes))
    oracle.batch = full_batch()
    return oracle


def retains(case: Case) -> list[str]:
    """The retain losses that it offers."""
    return list(get_args(case.kind.Settings.model_fields["retain"].annotation))


def longer(texts: Tokens | None, padding: int = 5) -> Tokens:
    """The same texts with more padding."""
    assert texts is not None
    return Tokens(pad(texts.ids, (0, padding)), pad(texts.answer, (0, padding)), texts.start)
