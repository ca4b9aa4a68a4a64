"""Gradient checkpointing changes no bit of any result, runs each block twice, and stores less in between."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from suite.adapters import ADAPTERS
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.models.encoding import Encoded
from suite.models.finetuning import finetune
from suite.models.gradient_checkpointing import checkpoint_blocks
from suite.models.layers import blocks_of
from suite.objectives import OBJECTIVES, Reference
from suite.oracle.base import Displacement, Part
from suite.oracle.loss import LossOracle
from suite.spec.measure import MeasureSpec
from suite.spec.trial import trial
from suite.spec.yaml_file import merged
from suite.storage.environment import Numeric
from suite.storage.store import Store
from suite.trials.run import run_trial
from tests.support.language_model import batch, direction, llama, same_bits
from tests.support.small import SMALL

SAVING = RuntimeSpec(gradient_checkpointing=True)


def make_oracle(adapter: str, objective: str, dtype: torch.dtype = torch.float32) -> LossOracle:
    model = llama(dtype=dtype)
    kind = ADAPTERS[adapter]
    kind(kind.Settings(), model, 0)
    objective_class = OBJECTIVES[objective]
    settings = objective_class.Settings(layer=0) if objective == "rmu" else objective_class.Settings()
    oracle = LossOracle(model, objective_class(settings, Reference(llama(1, dtype).requires_grad_(False))))
    oracle.batch = batch()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from an adapter's start, where half of its gradient is zero
        for p in oracle.parameters:
            p.add_((0.05 * torch.randn(p.shape, generator=draw)).to(p.dtype))
    return oracle


def pair(*how) -> tuple[LossOracle, LossOracle]:
    plain, saving = make_oracle(*how), make_oracle(*how)
    checkpoint_blocks(saving.model)
    return plain, saving


ORACLE_CALLS = {
    "values": lambda o, way: [o.values(Part.TOTAL, [None, Displacement.along(way, 0.02)])],
    "gradient": lambda o, way: o.gradient(),
    "gradient elsewhere": lambda o, way: o.gradient(Part.FORGET, Displacement.along(way, 0.02)),
    "directional": lambda o, way: [torch.tensor([o.directional(Part.TOTAL, way)], dtype=torch.float64)],
    "directional elsewhere": lambda o, way: [
        torch.tensor([o.directional(Part.RETAIN, way, Displacement.along(way, 0.02))], dtype=torch.float64)
    ],
    "curvature": lambda o, way: list(o.curvature_sample().gradient),
    "hvp": lambda o, way: o.hvp(Part.TOTAL, way),
    "hvp elsewhere": lambda o, way: o.hvp(Part.FORGET, way, Displacement.along(way, 0.02)),
}


@pytest.mark.parametrize("question", ORACLE_CALLS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("objective", ["npo", "rmu"])
def test_every_question_has_the_same_answer_bit_for_bit(question, adapter, objective):
    plain, saving = pair(adapter, objective)
    before, way = [p.detach().clone() for p in plain.parameters], direction(plain)
    answers = [ORACLE_CALLS[question](oracle, way) for oracle in (plain, saving)]
    assert same_bits(*answers)
    assert any(bool(t.count_nonzero()) for t in answers[0])
    assert same_bits(before, [p.detach() for p in saving.parameters])
    assert plain.queries.as_dict() == saving.queries.as_dict()


@pytest.mark.parametrize("question", ["gradient", "gradient elsewhere"])
def test_bf16_too(question):
    plain, saving = pair("full", "npo", torch.bfloat16)
    assert same_bits(*(ORACLE_CALLS[question](oracle, direction(plain)) for oracle in (plain, saving)))


def passes(oracle: LossOracle, question: str) -> Counter[int]:
    """How often each block's attention runs for one oracle call."""
    seen: Counter[int] = Counter()
    for place, block in enumerate(blocks_of(oracle.model)):
        block.self_attn.register_forward_hook(lambda *_, place=place: seen.update([place]))
    ORACLE_CALLS[question](oracle, direction(oracle))
    return seen


@pytest.mark.parametrize("question", ["gradient", "gradient elsewhere"])
def test_a_backward_pass_runs_each_block_again(question):
    plain, saving = (passes(oracle, question) for oracle in pair("full", "npo"))
    assert saving == {place: 2 * times for place, times in plain.items()} != {}


@pytest.mark.parametrize("question", ["values", "directional"])
def test_nothing_runs_again_where_no_backward_pass_comes(question):
    plain, saving = (passes(oracle, question) for oracle in pair("full", "npo"))
    assert plain == saving != {}


def test_a_step_of_fine_tuning_ends_in_the_same_bits():
    ends = []
    for saving in (False, True):
        model = llama()
        if saving:
            checkpoint_blocks(model)
        texts = [Encoded((1, 2, 3, n), 2) for n in range(4, 9)]
        assert list(finetune(model, texts, steps=3, lr=1e-2, batch_size=2, seed=0)) == [3]
        ends.append([p.detach() for p in model.parameters()])
    assert same_bits(*ends)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(SpecError, match="gradient_checkpointing"):
        checkpoint_blocks(torch.nn.Linear(2, 2))


def test_a_trial_that_saves_memory_is_the_same_trial(tmp_path, monkeypatch):
    """Same stages, same weights: no key depends on it, and every model that is trained uses it."""
    relearn = {"name": "relearn", "samples": 4, "steps": 2, "lr": 1e-3}
    measure = MeasureSpec(attacks=(relearn,), limit=2)
    spec = trial(merged(SMALL, {"steps": 2, "anchors": {"retain_limit": 16}}))
    wrapped: list[int] = []
    for module in ("training.anchors", "training.unlearning", "attacks.finetuning.base"):
        monkeypatch.setattr(
            f"suite.{module}.checkpoint_blocks", lambda model: (wrapped.append(1), checkpoint_blocks(model))
        )
    runs = {}
    for runtime in (RuntimeSpec(), SAVING):
        store = Store(tmp_path / str(runtime.gradient_checkpointing))
        run_trial(spec, store, measure=measure, runtime=runtime)
        runs[runtime.gradient_checkpointing] = store
    assert len(wrapped) == 2 + 1 + 3, "two anchors, one request, and the attack on each of the three"
    for table in ("trials", "measurements", "samples"):
        assert runs[False].board.result_rows(table).equals(runs[True].board.result_rows(table)), table
    assert Numeric.of(RuntimeSpec()) == Numeric.of(SAVING)


def kept(oracle: LossOracle) -> int:
    """Bytes that a forward pass stores for its backward pass, without the weights themselves."""
    own = {p.untyped_storage().data_ptr() for p in oracle.model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = oracle.objective.forget(oracle.model, oracle.batch)
    loss.backward()
    return sum(sizes.values())


def test_between_the_passes_less_is_kept():
    plain, saving = map(kept, pair("full", "npo"))
    # The inputs of two blocks and the logits, instead of some twenty tensors of each block.
    assert saving < plain / 3, (saving, plain)
