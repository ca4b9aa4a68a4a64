"""Losses at displacements against copies of the model that were displaced by hand, and the weights afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from suite.adapters import ADAPTERS
from suite.objectives import OBJECTIVES
from suite.oracle.base import Displacement, Diverged, Part
from suite.oracle.directions import Directions, Kind, LowRank
from suite.oracle.displaced import Displacing
from suite.oracle.loss import LossOracle
from suite.oracle.replicas import can_replicate, replicas
from tests.support.language_model import batch, direction, llama, oracle, same_bits, sum_of_parts, weights


def npo(model: nn.Module) -> LossOracle:
    kind = OBJECTIVES["npo"]
    made = LossOracle(model, kind(kind.Settings()))
    made.batch = batch()
    return made


def gpt2() -> nn.Module:
    """Embeddings of texts and positions, biases everywhere, and matrices in layers that are not nn.Linear."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3,
                   bos_token_id=0, eos_token_id=0)
    ).eval()  # fmt: skip


def gpt_neo() -> nn.Module:
    """Linear layers with biases, and an embedding of positions that runs once for all texts."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    return GPTNeoForCausalLM(
        GPTNeoConfig(vocab_size=23, hidden_size=16, num_layers=2, attention_types=[[["global", "local"], 1]],
                     num_heads=2, max_position_embeddings=32, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    ).eval()  # fmt: skip


def llama_with_biases(dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    max_position_embeddings=32, initializer_range=0.3, attention_bias=True, mlp_bias=True)
    ).eval()  # fmt: skip
    return model.to(dtype)


class Scaled(nn.Embedding):
    """An embedding that does not return its rows unchanged, as Gemma's does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 4.0


def scaled_llama() -> nn.Module:
    model = llama()
    embedding = Scaled(23, 16)
    embedding.weight = model.get_input_embeddings().weight  # still tied to the output layer
    model.set_input_embeddings(embedding)
    return model


def by_hand(loss_oracle: LossOracle, displacement: Displacement) -> float:
    """The total at a copy of the model: each tensor summed in fp32, rounded once."""
    model = copy.deepcopy(loss_oracle.model)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            place = p.float()
            for scale, way in displacement.terms:
                place = place + scale * way[i]
            p.copy_(place)
        objective = loss_oracle.objective
        return float(objective.forget(model, loss_oracle.batch) + objective.retain(model, loss_oracle.batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [llama, gpt2, gpt_neo, llama_with_biases, scaled_llama])
def test_a_value_is_that_of_a_copy_displaced_by_hand(model, dtype):
    """Tied embedding and output layer, biases, foreign layers; one term and two."""
    loss_oracle = npo(model().to(dtype))
    before = weights(loss_oracle)
    one = Displacement.along(direction(loss_oracle, 3), 0.05)
    two = one + Displacement.along(direction(loss_oracle, 4), -0.07)
    got = loss_oracle.values(Part.TOTAL, [one, None, two]).tolist()
    nothing = Displacement.along([torch.zeros_like(p) for p in before])
    expected = [by_hand(loss_oracle, d) for d in (one, nothing, two)]
    assert got == pytest.approx(expected, rel=1e-6 if dtype is torch.float32 else 2e-3)
    assert abs(expected[0] - expected[1]) > 2.5e-3 * expected[1], "the test would notice a displacement left out"
    assert same_bits(before, weights(loss_oracle))


@pytest.mark.parametrize("memory", ["keep", "seed"])
def test_tied_weights_are_displaced_once_in_each_module_that_reads_them(memory):
    """Only the tied tensor moves. Displaced twice, or in one of its two modules, it gives another value."""
    loss_oracle = npo(llama())
    assert loss_oracle.model.get_input_embeddings().weight is loss_oracle.model.get_output_embeddings().weight
    trainable = [
        p.requires_grad_(p is loss_oracle.model.get_input_embeddings().weight) for p in loss_oracle.model.parameters()
    ]
    loss_oracle = npo(loss_oracle.model)
    assert len(loss_oracle.parameters) == 1 < len(trainable)
    drawn = Directions(Kind.SPHERE, loss_oracle.parameters, 5, memory=memory)(0)

    def expected(embedding: float, output: float) -> float:
        model = copy.deepcopy(loss_oracle.model)
        weight, way = model.get_input_embeddings().weight.detach(), drawn.tensors[0]
        model.get_input_embeddings().weight = nn.Parameter(weight + embedding * way)
        model.get_output_embeddings().weight = nn.Parameter(weight + output * way)
        with torch.no_grad():
            return float(
                loss_oracle.objective.forget(model, loss_oracle.batch)
                + loss_oracle.objective.retain(model, loss_oracle.batch)
            )

    (got,) = loss_oracle.values(Part.TOTAL, [Displacement.along(drawn.tensors, 0.05)]).tolist()
    assert got == pytest.approx(expected(0.05, 0.05), rel=1e-6)
    for wrong in [(0.05, 0.1), (0.1, 0.05), (0.05, 0.0), (0.0, 0.05)]:
        assert abs(got - expected(*wrong)) > 1e-3


@pytest.mark.parametrize("model", [llama, gpt2])
def test_weights_are_back_after_an_error_in_mid_forward(model):
    loss_oracle = npo(model())
    before, places = weights(loss_oracle), [p.data_ptr() for p in loss_oracle.parameters]
    plain = loss_oracle.values(Part.TOTAL, [None])
    way = Displacement.along(direction(loss_oracle), 0.05)
    modules = [m for m in loss_oracle.model.modules() if m._parameters]
    for module in modules[:: len(modules) // 4]:

        def broken(*_: object) -> None:
            raise RuntimeError("out of memory")

        for register in (module.register_forward_pre_hook, module.register_forward_hook):
            handle = register(broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                loss_oracle.values(Part.TOTAL, [way])
            handle.remove()
            assert same_bits(before, weights(loss_oracle))
            assert places == [p.data_ptr() for p in loss_oracle.parameters]
    assert torch.equal(loss_oracle.values(Part.TOTAL, [None]), plain), "nothing goes on displacing"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loss_oracle.model.modules())


@pytest.mark.parametrize("memory", ["keep", "seed"])
def test_weights_are_back_after_a_place_that_is_not_finite(memory):
    loss_oracle = npo(llama())
    before = weights(loss_oracle)
    drawn = Directions(Kind.GAUSSIAN, loss_oracle.parameters, 1, memory=memory)(0)
    with pytest.raises(Diverged):
        loss_oracle.values(Part.TOTAL, [Displacement.along(drawn.tensors, 3e38)])
    assert same_bits(before, weights(loss_oracle))


class Gain(nn.Module):
    """A module with a parameter of its own around another, as some architectures' bodies have."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * self.gain)


def test_a_pass_that_is_broken_off_on_purpose_leaves_nothing_to_the_next_place():
    """RMU stops a pass at its layer by raising: what encloses the layer must not stay displaced for the next place."""

    class Reached(Exception):
        pass

    model, x, seen = Gain(), torch.tensor([[1.0, 2.0, 3.0]]), []

    def stop(module: nn.Module, args: object, output: torch.Tensor) -> None:
        raise Reached(output)

    model.inner.register_forward_hook(stop)
    parameters = list(model.parameters())
    ways = [[torch.full_like(p, size) for p in parameters] for size in (0.5, -0.25)]
    with Displacing(model, parameters) as moved, torch.no_grad():
        for way in ways:
            moved.displacement = Displacement.along(way)
            with pytest.raises(Reached) as reached:
                model(x)
            seen.append(reached.value.args[0])
    for way, got in zip(ways, seen, strict=True):
        gain, weight, bias = (p.detach() + w for p, w in zip(parameters, way, strict=True))
        torch.testing.assert_close(got, x * gain @ weight.T + bias)


def together_and_apart(loss_oracle: LossOracle, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Values at low-rank displacements and at None: all in one query, and as plain tensors in one query each."""
    draws = [LowRank(loss_oracle.parameters, 2, (seed, n)) for n in range(2)]
    one, other, back = (Displacement.along(draws[i], scale) for i, scale in ((0, 0.02), (1, 0.02), (0, -0.02)))
    places = [one, None, back, other]
    plain = [p and Displacement.along(list(p.terms[0][1]), p.terms[0][0]) for p in places]
    apart = torch.cat([loss_oracle.values(Part.TOTAL, [p]) for p in plain])
    return loss_oracle.values(Part.TOTAL, places), apart, can_replicate(loss_oracle.model, places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [llama, llama_with_biases])
def test_low_rank_places_together_are_those_one_by_one(model, dtype):
    loss_oracle = npo(model().to(dtype))
    before = weights(loss_oracle)
    together, apart, at_once = together_and_apart(loss_oracle)
    assert at_once
    torch.testing.assert_close(together, apart, rtol=2e-6 if dtype is torch.float32 else 3e-2, atol=1e-6)
    assert float(apart.max() - apart.min()) > 0.02 * float(apart.max()), "the places are apart"
    assert same_bits(before, weights(loss_oracle))


@pytest.mark.parametrize("model", [gpt2, gpt_neo, scaled_llama])
def test_models_that_cannot_be_asked_at_many_places_at_once_are_asked_one_by_one(model):
    """Foreign layers; positions, embedded once for all texts; embeddings that scale what they read."""
    together, apart, at_once = together_and_apart(npo(model()))
    assert not at_once
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)


def few_trained(model: nn.Module, names: tuple[str, ...]) -> LossOracle:
    """A wider model of which only these parameters are trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in names))
    return npo(model)


def wide_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=23, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                    max_position_embeddings=32, initializer_range=0.2, attention_bias=True)
    ).eval()  # fmt: skip


def with_lora() -> nn.Module:
    model = wide_llama()
    adapter = ADAPTERS["lora"](ADAPTERS["lora"].Settings(rank=2, targets=("*k_proj", "*v_proj")), model, 0)
    with torch.no_grad():
        for parameter in adapter.parameters:
            parameter.normal_(std=0.1)  # B starts at zero, where A does nothing
    return model


FEW_TRAINED = {
    "an adapter": (with_lora, ("lora",)),
    "gains of norms": (wide_llama, ("norm",)),
    "matrices and biases": (wide_llama, ("layers.1.self_attn.v_proj", "layers.2.self_attn.k_proj")),
    "the embedding": (wide_llama, ("embed_tokens",)),
}


@pytest.mark.parametrize("kind", [Kind.SPHERE, Kind.LOW_RANK])
@pytest.mark.parametrize("which", FEW_TRAINED)
def test_places_of_few_parameters_are_asked_together_as_one_by_one(which, kind):
    make, names = FEW_TRAINED[which]
    loss_oracle = few_trained(make(), names)
    before = weights(loss_oracle)
    directions = Directions(kind, loss_oracle.parameters, 0, rank=1)
    ways = [directions.held(n).tensors if kind is Kind.SPHERE else directions(n).tensors for n in range(3)]
    places = [None, *(Displacement.along(way, scale) for way in ways for scale in (0.05, -0.05))]
    noisy = Displacement(((0.05, list(ways[0])), (0.02, list(ways[1]))))  # as a smoothing adds
    places += [noisy] if kind is Kind.SPHERE else []
    apart = torch.cat([loss_oracle.values(Part.TOTAL, [place]) for place in places])
    assert can_replicate(loss_oracle.model, places)
    torch.testing.assert_close(loss_oracle.values(Part.TOTAL, places), apart, rtol=2e-6, atol=2e-6)
    assert float(apart.max() - apart.min()) > 1e-3
    assert same_bits(before, weights(loss_oracle))


def test_dense_places_of_all_weights_are_asked_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """A displaced copy of every weight for each place would take more memory and time than it saves."""
    loss_oracle = npo(wide_llama())
    places = [Displacement.along(direction(loss_oracle, n), 0.02) for n in range(2)]
    assert not can_replicate(loss_oracle.model, places)
    few = few_trained(wide_llama(), ("norm",))
    places = [Displacement.along(direction(few, n), 0.02) for n in range(2)]
    assert can_replicate(few.model, places)
    monkeypatch.setattr("suite.oracle.replicas.HELD", 2 * sum(p.numel() for p in few.parameters) - 1)
    assert not can_replicate(few.model, places)


def test_replicas_do_not_take_new_texts_for_old_ones_that_are_gone():
    """Texts are recognized by their id, and a new tensor may get the id of a freed one."""
    model = llama()
    parameters = list(model.parameters())
    way = LowRank(parameters, 1, (0, 0))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, w in zip(moved.parameters(), way, strict=True):
            p.add_(w, alpha=0.02)
        with replicas(model, parameters, [Displacement.along(way, 0.02), None]) as many:
            for seed in range(6):
                ids = torch.randint(0, 23, (2, 5), generator=torch.Generator().manual_seed(seed))
                torch.testing.assert_close(
                    many(input_ids=ids).logits, moved(input_ids=ids).logits, rtol=1e-4, atol=1e-5
                )
                del ids


def test_the_copy_by_hand_is_the_objective_itself():
    loss_oracle = oracle()
    nothing = Displacement.along([torch.zeros_like(p) for p in loss_oracle.parameters])
    with torch.no_grad():
        assert by_hand(loss_oracle, nothing) == pytest.approx(float(sum_of_parts(loss_oracle)), rel=1e-12)
