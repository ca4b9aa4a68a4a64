"""Barriers, sharpness and distances against closed forms, a full Hessian and plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.config.errors import SpecError
from suite.config.registry import Registry
from suite.config.runtime import RuntimeSpec
from suite.config.settings import Settings as NamedSettings
from suite.evaluation.landscape import DIAGNOSTICS, Diagnostic, LandscapeSettings, Reading, landscape
from suite.evaluation.landscape.barrier import barrier, line, place
from suite.evaluation.landscape.distance import distance
from suite.evaluation.landscape.sharpness import RADII, by_differences, clear_radius, hutchinson, signs
from suite.evaluation.landscape.surface import Surface, Texts
from suite.models.checkpoints import KeyedCheckpoint, SavedCheckpoint, TensorCheckpoint, interpolated
from suite.models.encoding import Encoded
from suite.oracle.base import Displacement, Diverged
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from tasks import TASKS
from tests.support.bowl import hilly
from tests.support.language_model import llama
from tests.support.small import SMALL

CPU = torch.device("cpu")
NOWHERE = Path("nowhere")
SMALLEST = LandscapeSettings(texts=6, points=3, probes=2)


def encoded(count: int = 5, vocabulary: int = 23, seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 9, count)
    return [Encoded(tuple(rng.integers(0, vocabulary, n).tolist()), int(rng.integers(1, n - 1))) for n in lengths]


def by_hand(model: torch.nn.Module, texts: Sequence[Encoded]) -> list[float]:
    """Loss per token of each answer, by one plain forward pass per text."""
    found = []
    with torch.no_grad():
        for text in texts:
            logp = model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
            logprobs = [float(logp[i - 1, text.ids[i]]) for i in range(text.start, len(text.ids))]
            found.append(-sum(logprobs) / len(logprobs))
    return found


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Quadratic:
    """f(x) = c + b'x + x'Ax/2 in float64, or rounded to fp32 as a model's loss is."""

    def __init__(self, a: np.ndarray, c: float = 0.0, rounded: bool = False) -> None:
        self.a, self.c, self.rounded = torch.from_numpy(a), c, rounded
        self.b = torch.from_numpy(np.random.default_rng(3).normal(size=len(a)))
        self.parameters = [torch.zeros(len(a) // 2), torch.zeros(len(a) - len(a) // 2)]

    def values(self, displacements: Sequence[Displacement | None]) -> torch.Tensor:
        found = []
        for displacement in displacements:
            x = torch.zeros(len(self.a), dtype=torch.float64)
            for scale, direction in displacement.terms if displacement else ():
                x = x + scale * torch.cat(list(direction)).double()
            f = self.c + self.b @ x + x @ self.a @ x / 2
            found.append(f.float().double() if self.rounded else f)
        return torch.stack(found)

    def curvature(self, direction: Sequence[torch.Tensor]) -> float:
        v = torch.cat(list(direction)).double()
        return float(v @ self.a @ v)


def test_losses_are_those_of_plain_forward_passes():
    model, texts = llama(), encoded(9)
    assert Texts(texts, CPU).losses(model).tolist() == pytest.approx(by_hand(model, texts), abs=1e-5)


def test_f_is_the_mean_over_texts_wherever_it_is_asked(monkeypatch):
    """Over several batches, and at displaced weights, which are written into a model by hand."""
    monkeypatch.setattr("suite.evaluation.landscape.surface.BATCH_TOKENS", 16)
    model, texts = llama(), encoded(7)
    surface = Surface(model, Texts(texts, CPU))
    assert len(surface.texts.batches) > 2
    direction = signs(surface.parameters, 0, 0)
    before = parameters(model)
    here, displaced = surface.values([None, Displacement.along(direction, 0.01)]).tolist()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert here == pytest.approx(np.mean(by_hand(model, texts)), abs=1e-5)
    with torch.no_grad():
        for p, v in zip(surface.parameters, direction, strict=True):
            p.add_(v, alpha=0.01)
    assert displaced == pytest.approx(np.mean(by_hand(model, texts)), abs=1e-5)


@pytest.fixture(scope="module")
def hessian():
    """A surface of 500 weights, and its full Hessian in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, tie_word_embeddings=True, initializer_range=0.4, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    texts = encoded(4, 11)
    exact = LlamaForCausalLM(config).double().eval()
    exact.load_state_dict(model.state_dict())
    loss = torch.zeros((), dtype=torch.float64)
    for text in texts:
        logp = exact(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        logprobs = [logp[i - 1, text.ids[i]] for i in range(text.start, len(text.ids))]
        loss = loss - sum(logprobs) / len(logprobs) / len(texts)
    weights = list(exact.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])
    every = torch.eye(len(gradient), dtype=torch.float64)
    rows = torch.autograd.grad(gradient, weights, every, is_grads_batched=True)
    return Surface(model, Texts(texts, CPU)), torch.cat([r.flatten(1) for r in rows], 1)


def test_both_ways_give_the_whole_hessians_number_along_each_direction(hessian):
    surface, full_hessian = hessian
    assert (full_hessian - full_hessian.T).abs().max() < 1e-6  # norms are computed in fp32
    radius = clear_radius(surface, 0)
    for index in range(6):
        v = torch.cat([d.flatten() for d in signs(surface.parameters, 0, index)]).double()
        exact = float(v @ full_hessian @ v)
        scale = max(abs(exact), float(full_hessian.trace().abs()))
        assert surface.curvature(signs(surface.parameters, 0, index)) == pytest.approx(exact, abs=1e-4 * scale)
    hutch, differences = hutchinson(surface, 6, 0), by_differences(surface, 6, 0, radius)
    assert differences.value == pytest.approx(hutch.value, rel=0.03)
    assert abs(differences.value - hutch.value) < hutch.error


def test_both_ways_find_the_trace_within_their_errors(hessian):
    surface, full_hessian = hessian
    exact = float(full_hessian.trace())
    for found in (hutchinson(surface, 120, 1), by_differences(surface, 120, 1, clear_radius(surface, 1))):
        assert found.n == 120
        assert abs(found.value - exact) < 4 * found.stderr
        # Closed form of the variance of v'Hv for signs.
        variance = 2 * float(full_hessian.square().sum() - full_hessian.diag().square().sum())
        assert found.stderr == pytest.approx((variance / 120) ** 0.5, rel=0.3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(RADII))
def test_a_quadratics_second_difference_is_exact_at_any_radius(seed, radius):
    bowl = Quadratic(hilly(12, seed))
    one, other = hutchinson(bowl, 3, seed), by_differences(bowl, 3, seed, radius)
    assert other.value == pytest.approx(one.value, rel=1e-4)


def test_the_trace_of_a_diagonal_is_known_without_error():
    bowl = Quadratic(np.diag(np.arange(1.0, 9.0)))
    found = hutchinson(bowl, 4, 0)
    assert (found.value, found.stderr) == (36.0, 0.0)


def test_the_radius_is_large_enough_to_be_no_rounding_and_no_larger():
    """A loss of 3 in fp32 is rounded to 2e-7: at the smallest radius the differences are all rounding."""
    for scale in (1.0, 1e2, 1e4):
        bowl = Quadratic(scale * hilly(40), c=3.0, rounded=True)
        radius = clear_radius(bowl, 0)
        exact = hutchinson(bowl, 4, 0).value
        assert by_differences(bowl, 4, 0, radius).value == pytest.approx(exact, rel=0.03)
        assert exact * radius**2 < 100 * 2e-7 * 30  # another of the radii, a third as large, would have been clear
    drowned = by_differences(Quadratic(hilly(40), c=3.0, rounded=True), 4, 0, RADII[0]).value
    assert abs(drowned / np.trace(hilly(40)) - 1) > 0.5


def test_where_everything_drowns_there_is_no_radius():
    assert clear_radius(Quadratic(1e-6 * hilly(8), c=3.0, rounded=True), 0) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_a_barrier_is_the_height_above_the_chord(points, texts, seed):
    losses = np.random.default_rng(seed).normal(size=(points, texts))
    shares = np.linspace(0, 1, points)
    heights = [losses[i] - ((1 - t) * losses[0] + t * losses[-1]) for i, t in enumerate(shares)]
    means = [0.0 if i in (0, points - 1) else h.mean() for i, h in enumerate(heights)]
    found = barrier(torch.from_numpy(shares), torch.from_numpy(losses))
    assert found.value == pytest.approx(max(means), abs=1e-12) and found.n == texts
    if texts > 1 and max(means) > 0:
        highest = heights[int(np.argmax(means))]
        assert found.stderr == pytest.approx(highest.std(ddof=1) / texts**0.5)


def test_a_straight_or_sagging_line_has_no_barrier():
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)
    for curve in (2 + 3 * shares, shares.square(), (shares - 0.5).square()):
        assert barrier(shares, curve.unsqueeze(1)).value < 1e-15
    hill = barrier(shares, (1 + shares + shares * (1 - shares)).unsqueeze(1))
    assert hill.value == pytest.approx(0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_are_those_of_a_mixture(dtype):
    one, other, model = llama(0, dtype), llama(1, dtype), llama(2, dtype)
    ends = [TensorCheckpoint(parameters(end), NOWHERE) for end in (one, other)]
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        place(model, parameters(one), parameters(other), share)
        expected = interpolated(*ends, share).state()
        assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_a_line_is_plain_forward_passes_at_its_places():
    one, other, texts = llama(0), llama(1), encoded()
    sets = [Texts(texts[:2], CPU), Texts(texts, CPU)]
    found = line(llama(2), parameters(one), parameters(other), sets, 5)
    for i, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        model = llama(3)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_((1 - share) * parameters(one)[name] + share * parameters(other)[name])
        expected = by_hand(model, texts)
        assert found[1].losses[i].tolist() == pytest.approx(expected, abs=1e-4)
        assert found[0].losses[i].tolist() == pytest.approx(expected[:2], abs=1e-4)
    assert found[1].curve == pytest.approx(found[1].losses.mean(1).tolist())


def test_a_model_and_its_permuted_twin_are_one_function_with_a_barrier_between():
    """Hidden units in another order compute the same function, but weights half way between the two do not."""
    one, twin, texts = llama(), llama(), [Texts(encoded(12), CPU)]
    with torch.no_grad():
        for block in twin.model.layers:
            mlp = block.mlp
            for rows in (mlp.gate_proj.weight, mlp.up_proj.weight):
                rows.copy_(rows.flip(0))
            mlp.down_proj.weight.copy_(mlp.down_proj.weight.flip(1))
    (between,) = line(llama(), parameters(one), parameters(twin), texts, 5)
    assert between.losses[0].tolist() == pytest.approx(between.losses[-1].tolist(), abs=1e-5)
    assert between.losses[2].sub(between.losses[0]).abs().max() > 1e-2
    (still,) = line(llama(), parameters(one), parameters(one), texts, 3)
    assert still.barrier.value == 0.0


def test_distances_agree_with_numpy():
    before, after, toward = (parameters(llama(seed)) for seed in range(3))
    found = distance(before, after, toward)
    flat = [np.concatenate([t.double().flatten().numpy() for t in side.values()]) for side in (before, after, toward)]
    change, direction = flat[1] - flat[0], flat[2] - flat[0]
    assert found.weights == len(change)
    assert found.l2 == pytest.approx(np.linalg.norm(change))
    assert found.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(flat[0]))
    assert found.cosine == pytest.approx(change @ direction / np.linalg.norm(change) / np.linalg.norm(direction))
    largest = max(np.linalg.norm(after[n] - before[n]) / np.linalg.norm(before[n]) for n in before)
    assert found.largest == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("share", [0.3, -0.5])
def test_along_the_way_the_cosine_is_one(share):
    before, toward = (TensorCheckpoint(parameters(llama(seed)), NOWHERE) for seed in (0, 1))
    found = distance(before.state(), interpolated(before, toward, share).state(), toward.state())
    assert found.cosine == pytest.approx(np.sign(share), abs=1e-6)
    assert found.l2 == pytest.approx(abs(share) * distance(before.state(), toward.state()).l2, rel=1e-5)


def test_nothing_moved_has_no_direction():
    before, toward = parameters(llama()), parameters(llama(1))
    found = distance(before, before, toward)
    assert (found.l2, found.relative, found.largest, found.cosine) == (0, 0, 0, None)
    assert distance(before, toward).cosine is None


def test_a_tensor_of_zeros_has_no_relative_change():
    before = {"a": torch.ones(4), "b": torch.zeros(2)}
    found = distance(before, {"a": torch.full((4,), 1.5), "b": torch.ones(2)})
    assert (found.largest, found.l2) == (0.5, 3**0.5)


@pytest.fixture(scope="module")
def scene(warm_store):
    task = TASKS["pocket"].build()
    store = Store(warm_store)
    return prepare_anchors(trial(SMALL), task, store.stages, RuntimeSpec()), task, store.stages


def read(scene, names, checkpoint, weights, both=None, **changes):
    both, task, store = both or scene[0], scene[1], scene[2]
    settings_ = LandscapeSettings(**{"texts": 6, "points": 3, "probes": 2} | changes)
    return landscape(names, KeyedCheckpoint(checkpoint, weights), both, task, store, RuntimeSpec(), settings_)


def test_the_target_is_where_it_is(scene):
    both, *_ = scene
    found = {(r.metric, r.subset): r for r in read(scene, list(DIAGNOSTICS), both.target.checkpoint, both.target.key)}
    for subset in ("forget", "retain"):
        assert found["barrier_to_target", subset].value == 0.0
        assert found["barrier_to_retrained", subset].value >= 0.0
        assert found["barrier_to_retrained", subset].n == 6
        one, other = (found[f"hessian_trace_{method}", subset] for method in ("hutchinson", "differences"))
        assert other.value == pytest.approx(one.value, rel=0.05) and one.n == 2
    assert found["distance_l2", "all"].value == 0.0
    assert found["distance_cosine_retrained", "all"].reason == "no way to compare: nothing moved"


def test_readings_are_those_of_the_functions_on_the_tasks_first_texts(scene):
    both, task, _ = scene
    found = {(r.metric, r.subset): r for r in read(scene, list(DIAGNOSTICS), both.retrained.checkpoint, "retrained")}
    target, retrained = (both.checkpoint(name).model() for name in ("target", "retrained"))
    expected = distance(parameters(target), parameters(retrained))
    assert found["distance_l2", "all"].value == expected.l2
    assert found["distance_cosine_retrained", "all"].value == pytest.approx(1.0)
    texts = [both.base.encoder.example(e) for e in task.forget_examples()[:6]]
    ends = [np.mean(by_hand(model, texts)) for model in (retrained, target)]
    with torch.no_grad():
        for p, q in zip(target.parameters(), retrained.parameters(), strict=True):
            p.copy_((p + q) / 2)
    above = np.mean(by_hand(target, texts)) - np.mean(ends)
    assert found["barrier_to_target", "forget"].value == pytest.approx(max(above, 0), abs=1e-5)
    surface = Surface(retrained, Texts(texts, CPU))
    assert found["hessian_trace_hutchinson", "forget"].value == pytest.approx(hutchinson(surface, 2, 0).value)


def test_bf16_weights_are_displaced_in_fp32(scene):
    target = scene[0].target.checkpoint
    half, single = (
        TensorCheckpoint({n: t.bfloat16().to(dtype) for n, t in target.state().items()}, target.architecture)
        for dtype in (torch.bfloat16, torch.float32)
    )
    found = [[r.value for r in read(scene, ["sharpness"], c, str(i))] for i, c in enumerate((half, single))]
    assert found[0] == found[1]


def test_what_was_read_once_is_not_read_again(scene):
    both, _, store = scene
    names = list(DIAGNOSTICS)
    first = read(scene, names, both.retrained.checkpoint, "again")
    computed = {kind: list(keys) for kind, keys in store.computed.items()}
    assert read(scene, names, SavedCheckpoint(NOWHERE), "again") == first
    assert store.computed == computed
    # Sharpness is about the checkpoint alone; a distance is not, and reads no texts.
    alone = replace(both, retrained=None)
    read(scene, ["sharpness"], SavedCheckpoint(NOWHERE), "again", alone)
    read(scene, ["distance"], SavedCheckpoint(NOWHERE), "again", texts=3)
    assert store.computed == computed
    for name, changes in (("barrier", {"points": 4}), ("sharpness", {"seed": 1}), ("barrier", {"texts": 5})):
        read(scene, [name], both.retrained.checkpoint, "again", **changes)
    read(scene, ["distance"], both.retrained.checkpoint, "again", alone)
    other_texts = replace(scene[1], retain=scene[1].retain[::-1])
    read((both, other_texts, store), ["sharpness"], both.retrained.checkpoint, "again")
    assert len(store.computed["landscape"]) == len(computed["landscape"]) + 5


def test_without_a_retrained_model_what_needs_one_is_null(scene):
    both = replace(scene[0], retrained=None)
    found = read(scene, ["barrier", "distance"], scene[0].retrained.checkpoint, "alone", both)
    for reading in found:
        needs_one = reading.metric.endswith("retrained")
        assert (reading.value is None) == needs_one == ("no retrained model" in (reading.reason or ""))


def test_a_wrecked_model_is_null_with_a_reason(scene):
    both, *_ = scene
    state = {name: t * float("nan") for name, t in both.target.checkpoint.state().items()}
    wrecked = TensorCheckpoint(state, both.target.checkpoint.architecture)
    for reading in read(scene, list(DIAGNOSTICS), wrecked, "wrecked"):
        assert reading.value is None and "not finite" in reading.reason


class Largest(Diagnostic):
    """The largest weight."""

    class Settings(NamedSettings):
        name: Literal["largest"] = "largest"

    source = "a test"
    reads_texts, reads_anchors = False, False

    def compute(self, inputs):
        largest = max(float(weights.abs().max()) for weights in inputs.checkpoint.state().values())
        return [Reading("largest_weight", "all", largest, None, 1)], {"more": [1, 2]}


def test_an_added_diagnostic_is_a_stage_like_the_others(scene, monkeypatch):
    both, _, store = scene
    monkeypatch.setattr(
        "suite.evaluation.landscape.DIAGNOSTICS", Registry("diagnostic", [*DIAGNOSTICS.values(), Largest])
    )
    expected = max(float(weights.abs().max()) for weights in both.target.checkpoint.state().values())
    before = len(store.computed.get("landscape", ()))
    for texts in (3, 4):  # it reads none
        found = read(scene, ["largest"], both.target.checkpoint, "added", texts=texts)
        assert found == [Reading("largest_weight", "all", expected, None, 1)]
    assert len(store.computed["landscape"]) == before + 1
    monkeypatch.setattr(Largest, "revision", 1)
    read(scene, ["largest"], both.target.checkpoint, "added")
    assert len(store.computed["landscape"]) == before + 2
    with pytest.raises(SpecError, match="Did you mean largest"):
        read(scene, ["larges"], both.target.checkpoint, "added")


def test_what_the_stages_of_diagnostics_depend_on_is_what_it_was(scene, monkeypatch):
    both, _, store = scene
    seen, run = {}, store.run

    def watched(kind, inputs, compute):
        seen[inputs["diagnostic"]] = (kind, sorted(inputs), inputs["settings"])
        return run(kind, inputs, compute)

    monkeypatch.setattr(store, "run", watched)
    read(scene, list(DIAGNOSTICS), both.target.checkpoint, "x")
    always, texts = ["diagnostic", "numeric", "settings", "version", "weights"], ["block", "template", "texts"]
    assert seen == {
        "barrier": ("landscape", sorted([*always, *texts, "anchors"]), {"texts": 6, "points": 3}),
        "sharpness": ("landscape", sorted([*always, *texts]), {"texts": 6, "probes": 2, "seed": 0}),
        "distance": ("landscape", sorted([*always, "anchors"]), {}),
    }


@pytest.mark.parametrize("name", ["sharpnes", "", "x" * 1000])
def test_a_diagnostic_that_there_is_not_is_refused(scene, name):
    with pytest.raises(
        SpecError, match=r"^landscape: .*no such diagnostic.* \(allowed: barrier, sharpness, distance\)$"
    ):
        read(scene, ["distance", name], scene[0].target.checkpoint, "x")


def test_what_there_is_not_is_refused(scene):
    with pytest.raises(SpecError, match="Did you mean sharpness"):
        read(scene, ["sharpnes"], scene[0].target.checkpoint, "x")
    with pytest.raises(Diverged, match="no texts"):
        Surface(llama(), Texts([], CPU))
