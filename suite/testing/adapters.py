"""What every adapter must do, on a language model of two thousand weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from suite.adapters import Adapter
from suite.models.checkpoints import weights_digest
from suite.oracle.base import Displacement, Part
from suite.oracle.directions import LazyTensors, LowRank
from suite.oracle.loss import LossOracle
from suite.testing.base import AxisConformance, Case
from suite.testing.language_model import copies, full_batch, llama, same_bits
from suite.testing.runs import (
    LOST,
    MIDDLE,
    NPO,
    ONE_PER_GRADE,
    check_moves,
    check_resumed,
    objective_of,
    trained,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.mark.filterwarnings(LOST)
class AdapterConformance(AxisConformance):
    """Tests of an adapter: `entry = Mine`."""

    base = Adapter

    @DTYPES
    def test_a_fresh_adapter_leaves_the_model_unchanged(self, case: Case, dtype: torch.dtype) -> None:
        model = llama(dtype=dtype)
        before = logits(model)
        adapter = made(case, model)
        name = case.what
        assert torch.equal(logits(adapter.model), before), (
            f"{name} changes what the model says before a step is made. Start it where it adds exactly zero"
        )
        assert any(bool(g.any()) for g in ask(adapter, dtype).gradient()), (
            f"{name}: the gradient of every parameter is 0 at the start, so none would ever move"
        )
        assert all(torch.equal(w.to(dtype), adapter.before[n]) for n, w in adapter.merged().items()), (
            f"{name}.merged: of a fresh adapter these are the weights in `before`"
        )

    def test_before_are_the_ordinary_weights_that_it_changes(self, case: Case) -> None:
        adapter, ordinary = moved(case), dict(llama().named_parameters())
        assert adapter.before.keys() == adapter.merged().keys(), f"{case.what}: `merged` and `before` differ"
        for name, weight in adapter.before.items():
            assert name in ordinary and torch.equal(weight, ordinary[name]), (
                f"{case.what}.before[{name!r}] is not a weight of the ordinary model as it was: keep it under "
                "the name that it has there, and copy it if a step changes it in place"
            )

    def test_its_parameters_alone_are_trained(self, case: Case) -> None:
        adapter = moved(case)
        assert adapter.parameters, f"{case.what} has nothing that is trained"
        replaced = {n for n, p in llama().named_parameters() if not _same(n, p, adapter)}
        assert replaced <= adapter.before.keys(), (
            f"{case.what} trains {', '.join(sorted(replaced - adapter.before.keys()))}, which `before` lacks. "
            "Freeze what it does not change: `model.requires_grad_(False)`"
        )
        assert not any(m.training for m in adapter.model.modules()), f"{case.what}: leave the model in eval mode"

    def test_the_start_follows_from_the_seed_alone(self, case: Case) -> None:
        models = [llama() for _ in range(2)]
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        one, same = (copies(made(case, model, 3).parameters) for model in models)
        name = case.what
        assert torch.equal(torch.rand(3), expected), (
            f"{name} draws from torch's global generator. Make one of the seed: `torch.Generator().manual_seed(seed)`"
        )
        assert same_bits(one, same), f"{name}: two adapters of one seed start at other values"

    @DTYPES
    def test_an_exported_model_is_an_ordinary_one_and_says_the_same(self, case: Case, dtype: torch.dtype) -> None:
        adapter = moved(case, dtype)
        training, names = adapter.model, [n for n, _ in adapter.model.named_parameters()]
        before, outputs = copies(training.parameters()), logits(training)
        name = case.what
        with adapter.exported(adapter.merged()) as model:
            exported = {n: p.detach().clone() for n, p in model.named_parameters()}
            alone = llama(dtype=dtype)
            assert list(exported) == [n for n, _ in alone.named_parameters()], (
                f"{name}.exported: the model has other parameters than an ordinary one. Keep the modules that it "
                "replaces in `_ordinary`, by name"
            )
            assert {t.dtype for t in exported.values()} == {dtype}
            alone.load_state_dict(model.state_dict())
            assert weights_digest(alone) == weights_digest(model)
            assert torch.equal(logits(alone), logits(model)), f"{name}: the exported model is more than its weights"
            if dtype is torch.float32:
                torch.testing.assert_close(
                    logits(model), outputs, rtol=1e-4, atol=1e-4,
                    msg=lambda text: f"{name}: the exported model says something else than the trained one. {text}",
                )  # fmt: skip
        assert [n for n, _ in adapter.model.named_parameters()] == names
        assert same_bits(before, copies(training.parameters())), f"{name}: an export changes the model that is trained"
        assert torch.equal(logits(training), outputs), f"{name}: an export changes the model that is trained"
        ordinary = dict(llama(dtype=dtype).named_parameters())
        changed = {n for n, w in exported.items() if not torch.equal(w, ordinary[n])}
        assert changed == adapter.before.keys(), (
            f"{name}: it changes {', '.join(sorted(changed))}, and `before` has {', '.join(adapter.before)}"
        )

    def test_the_trained_model_comes_back_after_an_error_during_an_export(self, case: Case) -> None:
        adapter = made(case, llama())
        before, storage = copies(adapter.parameters), [p.data_ptr() for p in adapter.parameters]
        with pytest.raises(OSError), adapter.exported({n: w + 1 for n, w in adapter.merged().items()}):
            raise OSError("disk full")
        assert same_bits(before, copies(adapter.parameters)), f"{case.what}.exported: restore in a `finally`"
        assert [p.data_ptr() for p in adapter.parameters] == storage

    def test_other_values_of_the_parameters_can_be_exported(self, case: Case) -> None:
        """As an average of iterates is: the model then answers as if it stood there."""
        adapter, there = (made(case, llama()) for _ in range(2))
        values = [p.detach() + 0.05 * w for p, w in zip(adapter.parameters, _way(adapter.parameters), strict=True)]
        with torch.no_grad():
            for p, value in zip(there.parameters, values, strict=True):
                p.copy_(value)
        with adapter.exported(adapter.merged(values)) as model:
            torch.testing.assert_close(
                logits(model), logits(there.model), rtol=1e-4, atol=1e-4,
                msg=lambda text: f"{case.what}.merged(weights) are not those of these parameters. {text}",
            )  # fmt: skip

    def test_displaced_parameters_are_read_where_they_are(self, case: Case) -> None:
        """Dense, lazy and low-rank directions give the loss of a model whose parameters are really there."""
        adapter, there = moved(case), moved(case)
        oracle, moved_oracle = ask(adapter), ask(there)
        before = copies(adapter.parameters)
        way = LowRank(oracle.parameters, 2, (1, 2))
        dense = [way[i] for i in range(len(way))]
        with torch.no_grad():
            for p, w in zip(there.parameters, dense, strict=True):
                p.add_(w, alpha=0.01)
        expected = float(moved_oracle.values(Part.TOTAL, [None]))
        for kind in (dense, way, LazyTensors(len(way), way.__getitem__)):
            (got,) = oracle.values(Part.TOTAL, [Displacement.along(kind, 0.01)]).tolist()
            assert got == pytest.approx(expected, rel=1e-5), (
                f"{case.what}: a displaced parameter is not read. Read each in the forward pass of the module "
                "that owns it"
            )
        assert same_bits(before, copies(adapter.parameters))

    @pytest.mark.parametrize("optimizer", ONE_PER_GRADE, ids=lambda case: case.name)
    def test_it_moves_with_an_optimizer_of_each_grade(self, case: Case, optimizer: Case) -> None:
        check_moves(f"{case.what} with {optimizer.name}", trained(optimizer=optimizer, adapter=case))

    def test_a_run_goes_on_from_its_parameters_bit_for_bit(self, case: Case) -> None:
        check_resumed(case.what, lambda run: run.optimizer, lambda: trained(adapter=case), MIDDLE)


def made(case: Case, model: Any, seed: int = 0) -> Adapter[Any]:
    adapter: Adapter[Any] = case.kind(case.settings(), model, seed)
    return adapter


def moved(case: Case, dtype: torch.dtype = torch.float32) -> Adapter[Any]:
    """An adapter whose parameters are away from their start."""
    adapter = made(case, llama(dtype=dtype))
    with torch.no_grad():
        for p, w in zip(adapter.parameters, _way(adapter.parameters, 7), strict=True):
            p.add_(0.1 * w)
    return adapter


def ask(adapter: Adapter[Any], dtype: torch.dtype = torch.float32) -> LossOracle:
    oracle = LossOracle(adapter.model, objective_of(NPO, dtype))
    oracle.batch = full_batch()
    return oracle


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=full_batch().forget.ids).logits
    return found


def _way(like: list[Tensor], seed: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=draw) for p in like]


def _same(name: str, weight: Tensor, adapter: Adapter[Any]) -> bool:
    """Whether a weight of the ordinary model is one that is frozen, or that the adapter has replaced."""
    now = dict(adapter.model.named_parameters()).get(name)
    return now is None or not now.requires_grad
