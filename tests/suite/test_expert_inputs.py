"""What calibrated edits see of experts: the tokens that are routed to each, and nothing of one that gets none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suite.attacks import attack
from suite.attacks.base import Attack
from suite.attacks.weights.calibration import edit_blocks
from suite.attacks.weights.layer_inputs import Inputs
from suite.attacks.weights.quantization import round_to_nearest
from suite.models.layers import matrices_of
from tests.support.attacked_families import CALIBRATED, FAMILIES, TEXTS, made


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
