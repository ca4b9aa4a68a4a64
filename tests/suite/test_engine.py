"""The transformers engine against one text at a time, computed in the plainest way."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small import SMALL

from suite.anchors import anchors
from suite.checkpoints import EditedCheckpoint, SavedCheckpoint, TensorCheckpoint, skeleton
from suite.engines import Job, TransformersEngine
from suite.spec import RuntimeSpec, trial
from suite.store import Store
from tasks import TASKS
from tasks.task import ProbeKind, Split, Style, limited

CLOSE = 1e-4
"""Log-probabilities agree to this in fp32; generations up to the first step whose two best logits are closer."""


@pytest.fixture(scope="module")
def both(warm_store):
    return anchors(trial(SMALL), TASKS["pocket"].build(), Store(warm_store).stages, RuntimeSpec())


def engine(both, batch_tokens: int = 512) -> TransformersEngine:
    return TransformersEngine(both.base.encoder, dtype="float32", device=torch.device("cpu"), batch_tokens=batch_tokens)


@pytest.fixture(scope="module")
def probes():
    return limited(TASKS["pocket"].build().probes_of(Split.TEST), 6)


@pytest.fixture(scope="module")
def evaluated(both, probes):
    (answer,) = engine(both).submit([Job("x", both.checkpoint("target"), probes)])
    return answer.samples


def plain_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def ids_of(both, item, answer):
    tokenizer, text = both.base.encoder.tokenizer, item.style is Style.TEXT
    head = tokenizer(item.prompt)["input_ids"]
    tail = tokenizer(answer if text else f" {answer}")["input_ids"] + ([] if text else [tokenizer.eos_token_id])
    return head, tail


@torch.no_grad()
def test_log_probabilities_are_those_of_one_text_at_a_time(both, probes, evaluated):
    model = plain_model(both.target.folder)
    checked = 0
    for probe in probes:
        if probe.kind is ProbeKind.GENERATE:
            continue
        for item, sample in zip(probe.items, evaluated[probe.name], strict=True):
            answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
            sums, lengths = [], []
            for answer in answers:
                head, tail = ids_of(both, item, answer)
                logprobs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
                own = [float(logprobs[len(head) - 1 + i, t]) for i, t in enumerate(tail)]
                right = [int(logprobs[len(head) - 1 + i].argmax()) == t for i, t in enumerate(tail)]
                sums.append(sum(own))
                lengths.append(len(own))
            if probe.kind is ProbeKind.CHOICE:
                assert sample.choice_logprobs == pytest.approx(sums, abs=CLOSE * max(lengths))
                assert sample.choice_lengths == tuple(lengths)
                assert sample.correct == item.correct
            else:
                assert sample.token_logprobs == pytest.approx(own, abs=CLOSE)
                assert sample.token_correct == tuple(right)
            assert sample.item == item.id
            checked += 1
    assert checked > 20


@torch.no_grad()
def test_generations_are_those_of_one_prompt_at_a_time(both, probes, evaluated):
    model, encoder = plain_model(both.target.folder), both.base.encoder
    texts = set()
    for probe in probes:
        if probe.kind is not ProbeKind.GENERATE:
            continue
        for item, sample in zip(probe.items, evaluated[probe.name], strict=True):
            ids, new = ids_of(both, item, "")[0], []
            for _ in range(probe.max_new_tokens):
                best = model(torch.tensor([ids + new])).logits[0, -1].topk(2)
                if float(best.values[0] - best.values[1]) < CLOSE or int(best.indices[0]) == encoder.eos:
                    break
                new.append(int(best.indices[0]))
            assert sample.generated.startswith(encoder.decode(new)) or encoder.decode(new).startswith(sample.generated)
            texts.add(sample.generated)
    assert len(texts) > 1


def test_answers_depend_on_neither_batch_size_nor_what_came_before(both, probes, evaluated):
    one = engine(both, batch_tokens=40)
    jobs = [Job("other", both.checkpoint("retrained"), probes), Job("x", both.checkpoint("target"), probes)]
    answers = {answer.key: answer.samples for answer in one.submit(jobs)}
    assert answers["other"] != answers["x"]
    for name, samples in answers["x"].items():
        for mine, reference in zip(samples, evaluated[name], strict=True):
            assert mine.token_logprobs == pytest.approx(reference.token_logprobs, abs=CLOSE) or mine.generated
            assert mine.item == reference.item


def test_memory_and_edits_are_checkpoints_too(both, probes, evaluated):
    saved = both.checkpoint("target")
    memory = TensorCheckpoint.of(saved.model(), saved.architecture)
    edited = EditedCheckpoint(saved, lambda state: dict(state), "as it is")
    for answer in engine(both).submit([Job("a", memory, probes), Job("b", edited, probes)]):
        assert answer.samples == evaluated


def test_a_truncated_checkpoint_is_named(both, tmp_path):
    import shutil

    from suite.checkpoints import CheckpointError, load_state

    folder = tmp_path / "copy"
    shutil.copytree(both.target.folder, folder)
    file = folder / "model.safetensors"
    with open(file, "rb+") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        SavedCheckpoint(folder).state()
    state = both.checkpoint("target").state()
    name = next(n for n in state if "q_proj" in n)
    for broken, words in [
        ({k: v for k, v in state.items() if k != name}, f"lacks the tensor {name}"),
        ({**state, name: state[name][:-1]}, "shape"),
        ({**state, "extra": state[name]}, "architecture lacks"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            load_state(skeleton(both.target.folder, torch.float32), broken)


def test_limited_probes_are_other_probes(probes):
    assert all(len(p.items) == 6 for p in probes)
    whole = TASKS["pocket"].build().probes_of(Split.TEST)
    assert all(a.digest != b.digest for a, b in zip(probes, whole, strict=True))
    assert dataclasses.replace(probes[0], metrics=()).digest == probes[0].digest, "a new metric needs no new samples"
