"""Weight edits in families of architectures: which tensors, and each expert's matrix by an independent reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import PretrainedConfig

from suite.attacks import attack
from suite.attacks.base import Attack, AttackContext, Subject
from suite.attacks.weights.calibration import edit_blocks
from suite.attacks.weights.layer_inputs import Inputs
from suite.attacks.weights.quantization import round_to_nearest
from suite.attacks.weights.residual import block_writers
from suite.config.errors import SpecError
from suite.models.checkpoints import Checkpoint, State, skeleton
from suite.models.layers import matrices_of
from suite.models.outline import model_outline, outline_of
from suite.oracle import noise
from suite.training.weight_change import change

VOCABULARY = 60
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
ROUTED = {"num_experts_per_tok": 2, "num_local_experts": 4}
LATENT = {
    **{**ATTENTION, "num_key_value_heads": 4, "num_experts_per_tok": 2},
    **{"kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8},
    **{"n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "n_shared_experts": 1,
}
BLOCK, GPT = {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}, {"n_embd": 32, "n_positions": 64}


@dataclass(frozen=True)
class Family:
    """An architecture, and by hand: the ends of the names of what is edited.

    Attributes:
        rows: matrices of their own, (outputs, inputs). columns: the same, (inputs, outputs).
        experts: (experts, outputs, inputs). turned: (experts, inputs, outputs).
    """

    config: PretrainedConfig
    rows: str = ""
    columns: str = ""
    experts: str = ""
    turned: str = ""

    def expected(self, name: str) -> str | None:
        """Which of the four a tensor is, if any."""
        stem = name.removesuffix(".weight")
        kinds = ("rows", "columns", "experts", "turned")
        return next((kind for kind in kinds if stem.endswith(tuple(getattr(self, kind).split() or "-"))), None)


QKVO = "q_proj k_proj v_proj o_proj"
FUSED = "experts.gate_up_proj experts.down_proj"
MAMBA = "in_proj x_proj out_proj"
FAMILIES = {
    "llama": Family(transformers.LlamaConfig(**ATTENTION), f"{QKVO} gate_proj up_proj down_proj"),
    "gpt2": Family(transformers.GPT2Config(**BLOCK, **GPT), columns="c_attn c_proj c_fc"),
    "mixtral": Family(transformers.MixtralConfig(**ATTENTION, **ROUTED), QKVO, experts=FUSED),
    "qwen3_moe": Family(
        transformers.Qwen3MoeConfig(
            **ATTENTION, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8
        ),
        QKVO,
        experts=FUSED,
    ),
    "gpt_oss": Family(transformers.GptOssConfig(**ATTENTION, **ROUTED, head_dim=8), QKVO, turned=FUSED),
    "llama4": Family(
        transformers.Llama4TextConfig(
            **{**ATTENTION, **ROUTED, "num_experts_per_tok": 1}, intermediate_size_mlp=56, head_dim=8
        ),
        f"{QKVO} shared_expert.gate_proj shared_expert.up_proj shared_expert.down_proj",
        turned=FUSED,
    ),
    "deepseek_v3": Family(
        transformers.DeepseekV3Config(**LATENT),
        "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj mlp.gate_proj mlp.up_proj mlp.down_proj "
        "shared_experts.gate_proj shared_experts.up_proj shared_experts.down_proj",
        experts=FUSED,
    ),
    "granitemoe": Family(transformers.GraniteMoeConfig(**ATTENTION, **ROUTED), QKVO, experts=FUSED),
    "jetmoe": Family(
        transformers.JetMoeConfig(**ATTENTION, **ROUTED, kv_channels=8),
        "kv_proj",
        experts="input_linear output_linear",
    ),
    "dbrx": Family(
        transformers.DbrxConfig(
            **{"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
            ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ),
        "Wqkv out_proj",
        experts="w1 v1",
        turned="w2",
    ),
    "mamba": Family(transformers.MambaConfig(**SMALL, state_size=4), MAMBA),
    "jamba": Family(
        transformers.JambaConfig(
            **ATTENTION,
            **{"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
            use_mamba_kernels=False,
        ),
        f"{QKVO} {MAMBA} feed_forward.gate_proj feed_forward.up_proj feed_forward.down_proj",
        experts=FUSED,
    ),
    "lfm2": Family(
        transformers.Lfm2Config(**ATTENTION, layer_types=["conv", "full_attention"]),
        "q_proj k_proj v_proj out_proj in_proj w1 w2 w3",
    ),
    "falcon": Family(
        transformers.FalconConfig(**SMALL, num_attention_heads=4),
        "query_key_value dense dense_h_to_4h dense_4h_to_h",
    ),
    "bloom": Family(transformers.BloomConfig(**BLOCK), "query_key_value dense dense_h_to_4h dense_4h_to_h"),
    "phi3": Family(transformers.Phi3Config(**ATTENTION, pad_token_id=0), "qkv_proj o_proj gate_up_proj down_proj"),
}
MIXTURES = [name for name, family in FAMILIES.items() if family.experts or family.turned]
BY_ITSELF = [
    {"name": "rtn", "bits": 4},
    {"name": "rtn", "bits": 3, "per": "group", "group": 8},
    {"name": "rtn", "bits": 4, "per": "tensor"},
    {"name": "nf4"},
    {"name": "fp4"},
    {"name": "int8"},
    {"name": "prune", "by": "magnitude", "sparsity": 0.5},
    {"name": "noise", "sigma": 0.1},
]
CALIBRATED = [
    {"name": "gptq", "bits": 2, "group": 8, "samples": 2},
    {"name": "awq", "bits": 4, "group": 8, "samples": 2},
    {"name": "prune", "by": "wanda", "sparsity": 0.5, "samples": 2},
]
TEXTS = [(3, 5, 2, 7, 3), (4, 4, 9, 50, 41, 33, 20), (11, 2, 3, 4, 5, 6, 7, 8, 30, 31, 59)]


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory."""

    tensors: State
    architecture: Path

    def state(self) -> State:
        return dict(self.tensors)

    def model(self, device: torch.device | str = "cpu") -> torch.nn.Module:
        model = skeleton(self.architecture, torch.float32)
        model.load_state_dict(self.tensors)
        return model.to(device)


def made(config: PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """A model whose router is undecided, so that different tokens go to different experts."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return model


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path) -> tuple[Family, Weights]:
    return subject_of(request.param, tmp_path)


def subject_of(name: str, folder: Path) -> tuple[Family, Weights]:
    family = FAMILIES[name]
    family.config.save_pretrained(folder)
    return family, Weights({n: t.clone() for n, t in made(family.config).state_dict().items()}, folder)


def after(settings: dict, weights: Checkpoint, scene: tuple[Subject, AttackContext]) -> State:
    ((_, attacked),) = attack(settings).apply(Subject(weights, scene[0].probes), scene[1])
    return attacked.checkpoint.state()


def matrices(kind: str, tensor: np.ndarray, experts: int) -> list[np.ndarray]:
    """Every matrix of a tensor, (outputs, inputs), by hand."""
    if kind in ("rows", "columns"):
        return [tensor if kind == "rows" else tensor.T]
    each = tensor.reshape(experts, -1, tensor.shape[-1])
    return [one if kind == "experts" else one.T for one in each]


def experts_of(config: PretrainedConfig) -> int:
    if config.model_type == "dbrx":
        return config.ffn_config.moe_num_experts
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((getattr(config, name) for name in names if hasattr(config, name)), 1)


def rounded(weight: np.ndarray, settings: dict) -> np.ndarray:
    """Rounding to nearest, row by row and group by group, in float64."""
    weight, levels = weight.astype(np.float64), 2 ** (settings["bits"] - 1) - 1
    if settings.get("per") == "tensor":
        largest = np.abs(weight).max()
        return np.round(weight / largest * levels) * largest / levels
    width = settings.get("group", weight.shape[1])
    out = np.zeros_like(weight)
    for start in range(0, weight.shape[1], width):
        part = weight[:, start : start + width]
        largest = np.abs(part).max(1, keepdims=True)
        out[:, start : start + width] = np.round(part / largest * levels) * largest / levels
    return out


def alone(settings: dict, matrix: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    """What an attack makes of one matrix that is the weight of an ordinary linear layer."""
    weight = torch.from_numpy(np.ascontiguousarray(matrix))
    match settings["name"]:
        case "rtn":
            return rounded(matrix, settings)
        case "prune":
            flat = matrix.copy().ravel()
            flat[np.argsort(np.abs(flat), kind="stable")[: round(settings["sparsity"] * flat.size)]] = 0
            return flat.reshape(matrix.shape)
        case "noise":
            (z,) = noise.gaussian([weight], (0, 0x2015E, 0, *place))
            return matrix + settings["sigma"] * np.sqrt((matrix.astype(np.float64) ** 2).mean()) * z.numpy()
        case _:
            functional = pytest.importorskip("bitsandbytes.functional")
            return attack(settings).rounded(weight, functional).numpy()


@pytest.mark.parametrize("settings", BY_ITSELF, ids=lambda s: "-".join(map(str, s.values())))
def test_every_matrix_is_edited_as_a_layer_of_its_own_and_nothing_else_is(family, settings, scene):
    if settings["name"] in ("nf4", "fp4", "int8"):
        pytest.importorskip("bitsandbytes")
    kind, weights = family
    edited = after(settings, weights, scene)
    assert edited.keys() == weights.tensors.keys()
    number = 0
    for name, before in sorted(weights.tensors.items()):
        stored = kind.expected(name)
        if stored is None:
            assert torch.equal(edited[name], before), name
            continue
        sides = (matrices(stored, t.numpy(), experts_of(kind.config)) for t in (before, edited[name]))
        for expert, (one, other) in enumerate(zip(*sides, strict=True)):
            place = (number,) if stored in ("rows", "columns") else (number, expert)
            np.testing.assert_allclose(other, alone(settings, one, place), rtol=1e-4, atol=1e-6, err_msg=name)
        number += 1
    assert number
    logits = replace(weights, tensors=edited).model()(torch.tensor([TEXTS[1]])).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MIXTURES)
def test_rounding_a_mixture_twice_is_rounding_it_once(name, scene, tmp_path):
    _, weights = subject_of(name, tmp_path)
    for settings in BY_ITSELF[:3]:
        once = after(settings, weights, scene)
        twice = after(settings, replace(weights, tensors=once), scene)
        assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize("settings", CALIBRATED, ids=lambda s: s["name"])
def test_calibrated_edits_reach_every_matrix_and_nothing_else(family, settings, scene):
    kind, weights = family
    context = small_vocabulary(scene[1])
    ((_, attacked),) = attack(settings).apply(Subject(weights, scene[0].probes), context)
    edited = attacked.checkpoint.state()
    changed = {name for name, tensor in weights.tensors.items() if not torch.equal(edited[name], tensor)}
    assert changed == {name for name in weights.tensors if kind.expected(name)}
    for name in changed:
        for matrix in matrices(kind.expected(name), edited[name].numpy(), experts_of(kind.config)):
            if settings["name"] == "gptq":  # three points in each group of inputs
                assert all(len(np.unique(row[:8])) <= 3 for row in matrix)
            elif settings["name"] == "prune":
                assert ((matrix == 0).sum(1) == matrix.shape[1] // 2).all()
    assert replace(weights, tensors=edited).model()(torch.tensor([TEXTS[1]])).logits.isfinite().all()


def small_vocabulary(context: AttackContext) -> AttackContext:
    """A context whose texts have only ids of the small vocabulary."""

    class Encoder:
        template = context.encoder.template

        def examples(self, texts, block):
            whole = context.encoder.examples(texts, block)
            return [replace(text, ids=tuple(i % VOCABULARY for i in text.ids)) for text in whole]

    return AttackContext(context.engine, Encoder(), context.task, 0, context.device)


# The inputs of experts


def routed(model: torch.nn.Module, block: int) -> tuple[np.ndarray, np.ndarray]:
    """What a plain hook sees of a block's experts: inputs, (positions, hidden), and the experts that each goes to."""
    experts = next(m for n, m in model.named_modules() if n.endswith(f"layers.{block}.mlp.experts"))
    seen = []
    hook = experts.register_forward_pre_hook(lambda _, args: seen.append((args[0].numpy(), args[1].numpy())))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    hook.remove()
    return tuple(np.concatenate([part[i] for part in seen]).astype(np.float64) for i in (0, 1))


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_an_experts_inputs_are_the_tokens_that_are_routed_to_it(name):
    seen: dict[str, Inputs] = {}

    def note(weight: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        seen.update(dict.fromkeys(inputs.layers, inputs))
        return weight

    model = made(FAMILIES[name].config)
    edit_blocks(model, TEXTS, note)
    for block in (0, 1):
        states, chosen = routed(model, block)
        for expert in range(4):
            x = states[(chosen == expert).any(1)]
            inputs = seen[f"model.layers.{block}.mlp.experts.gate_up_proj[{expert}]"]
            assert inputs.positions == len(x) > 0
            np.testing.assert_allclose(inputs.gram.numpy(), x.T @ x, rtol=1e-3, atol=1e-4)
            down = seen[f"model.layers.{block}.mlp.experts.down_proj[{expert}]"]
            assert down.positions == len(x) and down.gram.shape == (48, 48)
            if name == "mixtral":
                experts = model.model.layers[block].mlp.experts
                gate, up = np.split(x @ experts.gate_up_proj[expert].detach().numpy().T.astype(np.float64), 2, axis=1)
                inner = gate / (1 + np.exp(-gate)) * up
                np.testing.assert_allclose(down.gram.numpy(), inner.T @ inner, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["mixtral", "llama4", "jetmoe"])
def test_an_expert_that_sees_no_token_is_rounded_to_nearest(name, tmp_path, scene):
    """One text of two tokens reaches few experts."""
    settings = {"gptq": CALIBRATED[0], "awq": CALIBRATED[1]}
    for of in settings.values():
        model, chosen = made(FAMILIES[name].config), attack(of)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        unseen: list[str] = []

        def edit(
            weight: torch.Tensor, inputs: Inputs, chosen: Attack = chosen, unseen: list[str] = unseen
        ) -> torch.Tensor:
            if torch.equal(inputs.squares, torch.ones(weight.shape[1])):
                unseen += inputs.layers
            return chosen.edit(weight, inputs)

        edit_blocks(model, [(3, 5)], edit)
        assert unseen
        stored = matrices_of(model)
        for layer in unseen:
            key, _, expert = layer.rstrip("]").partition("[")
            was, now = (stored[key].matrices(t)[int(expert)] for t in (before[key], model.state_dict()[key]))
            torch.testing.assert_close(now, round_to_nearest(was, of["bits"], 8), rtol=1e-5, atol=1e-7)


# What cannot be attacked, keys, statistics


def test_a_model_whose_matrices_are_not_known_is_refused(scene, tmp_path):
    """XLNet's attention multiplies with tensors of three axes that belong to no layer."""
    config = transformers.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=16)
    config.save_pretrained(tmp_path)
    weights = Weights(made(config).state_dict(), tmp_path)
    for settings in (*BY_ITSELF, *CALIBRATED):
        if settings["name"] in ("nf4", "fp4", "int8"):
            pytest.importorskip("bitsandbytes")
        with pytest.raises(SpecError, match=rf"{settings['name']} would change \d\d% .* XLNetLMHeadModel .*rel_attn"):
            after(settings, weights, scene)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_version_rises_only_where_numbers_moved(name, tmp_path):
    """Before, an attack took every tensor of two axes for a layer's, outputs first."""
    family, weights = subject_of(name, tmp_path)
    moved = name in {*MIXTURES, "gpt2", "mamba", "jamba"}
    for settings in (*BY_ITSELF, *CALIBRATED):
        made_ = attack(settings)
        assert made_.version_for(tmp_path) == made_.version + moved
    assert attack({"name": "merge", "share": 0.5}).version_for(tmp_path) == 1
    before = {
        n
        for n, t in weights.tensors.items()
        if t.ndim == 2 and not any(p in n for p in ("embed", "lm_head", "wte", "wpe", "norm"))
    }
    assert (before == {n for n in weights.tensors if family.expected(n) == "rows"}) == (not moved)
    assert outline_of(tmp_path).share == 1


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss", "mamba"])
def test_codes_that_flip_are_counted_in_the_same_matrices(name):
    family, model = FAMILIES[name], made(FAMILIES[name].config)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw) * 0.01)
    got = change(before, model)
    for bits, share in ((4, got.flipped_share_4bit), (8, got.flipped_share_8bit)):
        flips = total = 0
        for n, p in model.named_parameters():
            if kind := family.expected(n):
                for pair in zip(*(matrices(kind, t.detach().numpy(), 4) for t in (before[n], p)), strict=True):
                    levels = 2 ** (bits - 1) - 1
                    codes = [np.round(w / (np.abs(w).max(1, keepdims=True) / np.float32(levels))) for w in pair]
                    flips += (codes[0] != codes[1]).sum()
                    total += pair[0].size
        assert share == pytest.approx(flips / total, abs=2 / total) and share > 0


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "llama4", "deepseek_v3"])
def test_experts_write_into_the_residual_stream_along_their_outputs(name):
    """Also where hidden and inner size are the same, so that shapes say nothing."""
    config = type(FAMILIES[name].config)(**{**FAMILIES[name].config.to_dict(), "intermediate_size": 32})
    model = made(config)
    axes = {w.names[0].rpartition(".mlp.")[2].rpartition("feed_forward.")[2]: w.axis for w in block_writers(model)}
    assert axes["experts.down_proj"] == (2 if FAMILIES[name].turned else 1)


def test_an_ordinary_layer_that_is_called_like_a_state_spaces_is_edited():
    """Doge's attention has a `dt_proj`, LFM2's convolution an `in_proj`."""
    doge = transformers.DogeConfig(**ATTENTION)
    assert model_outline(made(doge)).as_before
    assert any("dt_proj" in name for name in matrices_of(made(doge)))
