"""Adapters against peft's own merge, torch.func on an ordinary model, and numpy."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from suite import adapters
from suite.adapters import ADAPTERS
from suite.adapters.bounded import bounded_change
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.models.checkpoints import SavedCheckpoint, weights_digest
from suite.objectives import OBJECTIVES, Reference
from suite.oracle.base import Part
from suite.oracle.loss import LossOracle
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.store import Store
from suite.testing import AdapterConformance, Case
from suite.training.anchors import prepare_anchors
from suite.training.unlearning import unlearn
from tasks import TASKS
from tests.support.language_model import batch, llama, same_bits
from tests.support.small import SMALL

LOW_RANK = ["lora", "bounded"]


class TestEveryAdapter(AdapterConformance):
    entries = (
        *ADAPTERS.values(),
        *(Case(ADAPTERS[name], {"rank": 3, "targets": ["*mlp*"]}) for name in ("lora", "bounded")),
    )


MLP = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up", "down")]


def adapted(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """An adapter in a model, with A and B away from their start."""
    kind = ADAPTERS[name]
    adapter = kind(kind.Settings(**{"rank": 3, "targets": ("*mlp*",), **changes}), llama(dtype=dtype), seed)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in adapter.parameters:
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return adapter


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch().forget.ids).logits


def ask(adapter) -> LossOracle:
    kind = OBJECTIVES["npo"]
    loss_oracle = LossOracle(adapter.model, kind(kind.Settings(), Reference(llama(1).requires_grad_(False))))
    loss_oracle.batch = batch()
    return loss_oracle


def delta(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The formulas, with the settings' defaults at rank 3."""
    return (16 / 3) * (b @ a) if name == "lora" else 0.02 * torch.sin(100 * (b @ a))


def factors(adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B in the order of the modules: they are the only parameters that can be trained."""
    own = [p.detach() for p in adapter.model.parameters() if p.requires_grad]
    return {name: (own[2 * i], own[2 * i + 1]) for i, name in enumerate(adapter.before)}


def test_full_is_the_default_and_leaves_ids_alone():
    assert "adapter" not in trial(SMALL).canonical
    assert trial({**SMALL, "adapter": "full"}).id == trial(SMALL).id
    assert trial({**SMALL, "adapter": {"name": "lora"}}).id != trial(SMALL).id
    assert trial({**SMALL, "adapter": "lora"}).id == trial({**SMALL, "adapter": {"name": "lora", "rank": 8}}).id


def test_patterns_of_trainable_weights_and_an_adapter_are_refused():
    with pytest.raises(SpecError, match=r"trainable: with adapter.name=lora .* adapter.targets"):
        trial({**SMALL, "adapter": "lora", "trainable": "*mlp*"})


def test_adapters_are_listed():
    from suite.cli.ls import Axis, _rows

    listed = {row["name"]: row["summary"] for row in _rows(Axis.ADAPTERS)}
    assert listed.keys() == {"full", *LOW_RANK}
    assert listed["full"] == "The weights themselves."


def test_a_bare_pattern_is_a_list_of_one():
    one = trial({**SMALL, "adapter": {"name": "lora", "targets": "*mlp*"}})
    assert one.id == trial({**SMALL, "adapter": {"name": "lora", "targets": ["*mlp*"]}}).id


def test_peft_is_imported_only_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # an import of it fails
    for file in Path(adapters.__file__).parent.glob("*.py"):
        runpy.run_path(str(file))
    with pytest.raises(ImportError):
        ADAPTERS["lora"](ADAPTERS["lora"].Settings(), llama(), 0)


@pytest.mark.parametrize("name", LOW_RANK)
def test_only_the_adapter_is_trained_in_fp32(name):
    adapter = adapted(name, torch.bfloat16)
    trained = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(MLP)
    assert not trained & {n for n, _ in llama().named_parameters()}
    assert {p.dtype for p in ask(adapter).parameters} == {torch.float32}
    assert not any(m.training for m in adapter.model.modules())


def test_lora_publishes_what_peft_would_merge():
    from peft import LoraConfig, get_peft_model

    adapter = adapted("lora", targets=("*",))
    peft_model = get_peft_model(llama(), LoraConfig(r=3, lora_alpha=16.0, target_modules="all-linear"))
    theirs = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p, ours in zip(theirs.values(), adapter.parameters, strict=True):
            p.copy_(ours)
    merged_state = peft_model.merge_and_unload().state_dict()
    with adapter.exported(adapter.merged()) as model:
        assert model.state_dict().keys() == merged_state.keys()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, merged_state[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LOW_RANK)
def test_gradients_are_those_of_the_formula_in_an_ordinary_model(name):
    """torch.func over a plain model whose weights are W + delta(A, B)."""
    adapter = adapted(name)
    plain = llama()
    kind = OBJECTIVES["npo"]
    objective = kind(kind.Settings(), Reference(llama(1).requires_grad_(False)))
    base = {n: p.detach() for n, p in plain.named_parameters()}

    def loss(pairs):
        changed = {n: base[n] + delta(name, a, b) for n, (a, b) in pairs.items()}

        def call(*args, **kwargs):
            return torch.func.functional_call(plain, {**base, **changed}, args, kwargs)

        return objective.forget(call, batch()) + objective.retain(call, batch())

    expected = torch.func.grad(loss)(factors(adapter))
    got = ask(adapter).gradient()
    for g, e in zip(got, [t for pair in expected.values() for t in pair], strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 3), elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.float32, (4, 2), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(1e-4, 10.0),
    st.floats(0.1, 1e3),
)
def test_a_bounded_change_is_within_its_bound_for_any_factors(a, b, bound, frequency):
    change = bounded_change(torch.from_numpy(a), torch.from_numpy(b), bound, frequency)
    assert change.shape == (4, 3)
    assert float(change.abs().max()) <= np.float32(bound)


def test_a_bounded_change_is_the_sine_of_the_product():
    draw = np.random.default_rng(0)
    a, b = (0.05 * draw.standard_normal(shape).astype(np.float32) for shape in ((2, 5), (4, 2)))
    expected = 0.3 * np.sin(7.0 * (b.astype(np.float64) @ a))
    np.testing.assert_allclose(bounded_change(torch.from_numpy(a), torch.from_numpy(b), 0.3, 7.0), expected, rtol=1e-4)


def test_ascent_on_a_bounded_adapter_cannot_move_a_weight_beyond_the_bound():
    adapter = adapted("bounded", bound=0.05)
    loss_oracle = ask(adapter)
    for _ in range(5):
        gradient = loss_oracle.gradient(Part.FORGET)
        with torch.no_grad():
            for p, g in zip(loss_oracle.parameters, gradient, strict=True):
                p.sub_(g, alpha=10.0)
    moved = [float((w - adapter.before[n]).abs().max()) for n, w in adapter.merged().items()]
    assert 0.04 < max(moved) <= 0.05 * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOW_RANK)
def test_merged_weights_are_summed_in_fp32_and_rounded_once(name, dtype):
    adapter = adapted(name, dtype)
    with adapter.exported(adapter.merged()) as model:
        exported = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert {t.dtype for t in exported.values()} == {dtype}
    for n, before in adapter.before.items():
        expected = (before.float() + delta(name, *factors(adapter)[n])).to(dtype)
        assert float((exported[n] != expected).float().mean()) < 0.01  # products summed in another order
        torch.testing.assert_close(exported[n], expected)


@pytest.mark.parametrize("name", LOW_RANK)
def test_two_seeds_have_two_starts(name):
    one, other = (ADAPTERS[name](ADAPTERS[name].Settings(), llama(), seed).parameters for seed in (3, 4))
    assert not same_bits([p.detach() for p in one], [p.detach() for p in other])


@pytest.mark.parametrize("name", LOW_RANK)
def test_targets_choose_layers_and_never_the_output_layer(name):
    kind = ADAPTERS[name]
    untied = llama()
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    everything = kind(kind.Settings(targets=("*",)), untied, 0)
    assert len(everything.before) == 14
    assert "lm_head.weight" not in everything.before
    some = kind(kind.Settings(targets=("*layers.1*q_proj", "*layers.0*v_proj")), llama(), 0)
    assert set(some.before) == {"model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight"}
    with pytest.raises(
        SpecError, match=r"adapter.targets: .*nonsense.* matches no linear layer of the model \(there are model"
    ):
        kind(kind.Settings(targets=("*nonsense*",)), llama(), 0)


@pytest.fixture(scope="module")
def run(warm_store, tmp_path_factory):
    """Unlearn a small trial with some changes; its meta, its final weights, and its folder."""
    import shutil

    root = tmp_path_factory.mktemp("adapters") / "store"
    shutil.copytree(warm_store, root)
    stages = Store(root).stages
    task, known = TASKS["pocket"].build(), {}

    def go(**changes):
        spec = trial(merged(SMALL, changes))
        if spec.id not in known:
            both = prepare_anchors(spec, task, stages, RuntimeSpec())
            (done,) = unlearn(spec, task, both, stages, RuntimeSpec())
            known[spec.id] = done.meta, both.checkpoint("target").state(), done.folder
        return known[spec.id]

    return go


def final(folder) -> dict[str, torch.Tensor]:
    return SavedCheckpoint(folder / "final").state()


@pytest.mark.parametrize("name", LOW_RANK)
def test_an_unlearned_adapter_is_saved_as_ordinary_weights(run, name):
    meta, target, folder = run(adapter={"name": name, "targets": "*mlp*"}, checkpoints={"every": 2})
    saved = final(folder)
    assert saved.keys() == target.keys()
    changed = {n for n in saved if not torch.equal(saved[n], target[n])}
    assert changed
    assert all("mlp" in n for n in changed)
    assert meta["weights"] == weights_digest(SavedCheckpoint(folder / "final").model())
    assert meta["kept"] == [2]
    norm = sum(float((saved[n].double() - target[n].double()).square().sum()) for n in saved) ** 0.5
    assert meta["change_norm"] == pytest.approx(norm, rel=1e-12)
    of_mlp = sum(t.numel() for n, t in saved.items() if "mlp" in n)
    assert meta["changed_share"] == sum(int((saved[n] != target[n]).sum()) for n in changed) / of_mlp
    assert (meta["status"], meta["grade"]) == ("ok", "first")


@pytest.mark.parametrize("name", LOW_RANK)
def test_zeroth_order_steps_move_an_adapter_too(run, name):
    meta, _, _ = run(adapter=name, optimizer={"name": "zo_sgd", "lr": 1e-2}, steps=2)
    assert meta["grade"] == "zeroth"
    assert meta["change_norm"] > 0


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_keeping_checkpoints_of_an_average_does_not_disturb_the_run(run, adapter):
    average = {"adapter": adapter, "smoothing": {"name": "wa", "start": 2, "every": 1}}
    alone, _, one = run(**average)
    kept, _, other = run(**average, checkpoints={"every": 1})
    assert kept["weights"] == alone["weights"]
    assert all(torch.equal(a, b) for a, b in zip(final(one).values(), final(other).values(), strict=True))


def test_the_published_average_is_the_mean_of_the_iterates(run):
    """Against the kept checkpoints of the same steps without averaging."""
    _, _, averaged = run(smoothing={"name": "wa", "start": 2, "every": 1}, checkpoints={"every": 1})
    _, _, plain = run(checkpoints={"every": 1})
    steps = [SavedCheckpoint(plain / part).state() for part in ("step2", "step3", "final")]
    for name, tensor in final(averaged).items():
        mean = np.mean([s[name].double().numpy() for s in steps], axis=0)
        np.testing.assert_allclose(tensor.numpy(), mean, rtol=1e-6, atol=1e-8)
    for n, t in SavedCheckpoint(averaged / "step3").state().items():
        two = (steps[0][n].double() + steps[1][n].double()) / 2
        np.testing.assert_allclose(t.numpy(), two.numpy(), rtol=1e-6, atol=1e-8)
    assert all(torch.equal(t, steps[0][n]) for n, t in SavedCheckpoint(averaged / "step2").state().items())


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_an_edit_is_made_on_the_merged_weights(run, adapter):
    """A task vector subtracted twice goes twice as far, from the same steps."""
    settings_ = {"adapter": adapter, "optimizer": {"name": "sgd", "lr": 1e-2}}
    once, target, one = run(**settings_, objective={"name": "task_vector"})
    twice, _, two = run(**settings_, objective={"name": "task_vector", "scale": 2.0})
    assert 0 < once["change_norm"] == pytest.approx(twice["change_norm"] / 2, rel=1e-3)
    for name, tensor in final(two).items():
        torch.testing.assert_close(tensor - target[name], 2 * (final(one)[name] - target[name]), rtol=0.01, atol=1e-7)
