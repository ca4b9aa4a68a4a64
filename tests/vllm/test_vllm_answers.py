"""The real vLLM against plain transformers: the same texts and the same numbers, checkpoint after checkpoint."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from suite.attacks import AttackContext, Subject, attack
from suite.engines import Job, TransformersEngine
from suite.engines.agreement import agreement, tie
from suite.engines.questions import Questions
from suite.models.checkpoints import SavedCheckpoint, TensorCheckpoint
from tasks import TASKS
from tasks.task import Item, Need, Probe, ProbeKind, Split, Style, Subset

CLOSE = 1e-3
"""Log-probabilities of a token agree to this in fp32."""


@torch.inference_mode()
def answers_of(folder, questions):
    """Greedy tokens, and log-probabilities of the answers, one text at a time, from a freshly loaded model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    greedy = []
    for request in questions.generation_requests:
        if request.draw is not None:
            continue
        ids, gaps = list(request.prompt), []
        for _ in range(request.limit):
            best = model(torch.tensor([ids])).logits[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
            if ids[-1] in (1, *request.stop):
                break
        greedy.append((ids[len(request.prompt) :], gaps))
    scores = []
    for request in questions.score_requests:
        logp = model(torch.tensor([request.text.ids])).logits[0].log_softmax(-1)
        scores.append(
            [float(logp[i - 1, request.text.ids[i]]) for i in range(request.text.start, len(request.text.ids))]
        )
    return greedy, scores


def agree(new, greedy, gaps) -> bool:
    """Whether tokens are the same up to the first step whose two best logits are closer than 1e-4."""
    decided = next((i for i, gap in enumerate(gaps) if gap < 1e-4), len(greedy))
    wanted = [token for token in greedy[:decided] if token != 1]
    return new[: len(wanted)] == wanted and (decided < len(greedy) or len(new) == len(wanted))


def check(engine, checkpoint, folder, questions):
    greedy, scores = answers_of(folder, questions)
    continuations = engine.continuations(checkpoint, questions)
    new = [n for n, r in zip(continuations, questions.generation_requests, strict=True) if not r.draw]
    assert all(agree(n, *wanted) for n, wanted in zip(new, greedy, strict=True))
    found, _ = engine.likelihoods(checkpoint, questions.score_requests)
    for score, wanted in zip(found, scores, strict=True):
        assert score.logprobs == pytest.approx(wanted, abs=CLOSE)


@pytest.mark.parametrize("kind", ["untied", pytest.param("tied", marks=pytest.mark.slow)])
def test_twenty_checkpoints_one_after_another_answer_as_fresh_models_do(kind, request, engines, encoder, probes, pids):
    folders = request.getfixturevalue(kind)
    engine, questions = engines(alone=True), Questions(encoder, probes)
    seen = set()
    for swap in range(20):
        folder = folders(swap % 7)  # some come back, and must not use what was cached for them before
        checkpoint = SavedCheckpoint(folder)
        if swap % 2:
            checkpoint = TensorCheckpoint(checkpoint.state(), folder)
        check(engine, checkpoint, folder, questions)
        seen.update(pids())
    assert len(seen) == 1  # and all of them in one engine


def test_samples_are_those_of_the_transformers_engine(untied, engines, encoder, probes):
    checkpoint = SavedCheckpoint(untied(0))
    plain = TransformersEngine(encoder, dtype="float32", device=torch.device("cpu"))
    for engine in (engines(), engines(alone=True)):
        (found,), (wanted,) = (
            engine.submit([Job("x", checkpoint, probes)]),
            plain.submit([Job("x", checkpoint, probes)]),
        )
        assert found.error is None
        assert found.samples["drawn"] == wanted.samples["drawn"]  # the same random numbers, the same tokens
        assert len({text for sample in found.samples["drawn"] for text in sample.sampled}) > 6
        assert [s.generated for s in found.samples["until"]] == [s.generated for s in wanted.samples["until"]]
        for probe in probes:
            for ours, theirs in zip(found.samples[probe.name], wanted.samples[probe.name], strict=True):
                assert ours.generated == theirs.generated
                assert (ours.token_logprobs or ()) == pytest.approx(theirs.token_logprobs or (), abs=CLOSE)
                assert ours.token_correct == theirs.token_correct
                assert (ours.choice_logprobs or ()) == pytest.approx(theirs.choice_logprobs or (), abs=20 * CLOSE)


def test_answers_do_not_depend_on_what_was_in_the_engine_before(untied, engines, encoder, probes, pool, pids):
    """Two checkpoints in turn, against an engine of its own for each: the same tokens, the same bits."""
    import ray

    engine, questions = engines(alone=True), Questions(encoder, probes)
    one, other = (SavedCheckpoint(untied(seed)) for seed in (0, 1))

    def results(checkpoint):
        return engine.continuations(checkpoint, questions), engine.likelihoods(checkpoint, questions.score_requests)

    in_turn = [results(checkpoint) for checkpoint in (one, other, one, other)]
    fresh = []
    for checkpoint in (one, other):
        before = pids()
        ray.get(pool.close.remote())
        fresh.append(results(checkpoint))
        assert not set(before) & set(pids())
    assert in_turn == [*fresh, *fresh]
    assert fresh[0] != fresh[1]


def test_edits_come_as_the_weights_that_they_make(untied, engines, encoder, probes, tmp_path):
    """A quantized copy is evaluated with de-quantized weights, in the same engine as other checkpoints."""
    cpu = torch.device("cpu")
    context = AttackContext(engines(), encoder, TASKS["pocket"].build(), 0, cpu)
    ((_, subject),) = attack({"name": "rtn", "bits": 3}).apply(Subject(SavedCheckpoint(untied(2)), probes), context)
    subject.checkpoint.model().save_pretrained(tmp_path)
    check(engines(alone=True), subject.checkpoint, tmp_path, Questions(encoder, probes))


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision(dtype, untied, engines, encoder, probes):
    """Within rounding: texts diverge only at ties, and log-probabilities differ by a few roundings."""
    checkpoint = SavedCheckpoint(untied(0), getattr(torch, dtype))
    plain = TransformersEngine(encoder, dtype=dtype, device=torch.device("cpu"))
    for found in agreement(checkpoint, probes, encoder, plain, engines(dtype, alone=True)):
        assert found.parted == 0 or found.kind is not ProbeKind.GENERATE
        assert (found.worst or 0) < tie(getattr(torch, dtype))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(  # transposed, learned positions
            "gpt2", {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 256}, marks=pytest.mark.slow
        ),
        pytest.param("qwen2", {"tie_word_embeddings": False}, marks=pytest.mark.slow),  # biases
        ("qwen3", {"tie_word_embeddings": True}),  # norms of queries and keys
        pytest.param("phi3", {"num_key_value_heads": 2}, marks=pytest.mark.slow),  # fused in the file already
    ],
)
def test_architectures(kind, config, made, engines, encoder, probes):
    engine, questions = engines(alone=True), Questions(encoder, probes)
    for seed in (0, 1, 0):
        folder = made(kind, seed, **config)
        check(engine, SavedCheckpoint(folder), folder, questions)


@pytest.mark.slow
def test_an_engine_in_two_processes(made, engines, encoder, probes):
    """Tensor parallelism: each holds a part of most weights, and the sums of the parts add up."""
    engine, questions = engines(tensor_parallel=2), Questions(encoder, probes)
    for seed in (0, 1, 0):
        folder = made("llama", seed, num_key_value_heads=2, tie_word_embeddings=True)
        checkpoint = SavedCheckpoint(folder)
        if seed:
            checkpoint = TensorCheckpoint(checkpoint.state(), folder)
        check(engine, checkpoint, folder, questions)


def test_a_text_that_fills_the_context(untied, engines, encoder):
    """vLLM generates one token after each text, which would exceed the context, so transformers scores it."""
    items = tuple(Item(str(n), "", ("to be or not to be " * 30,), style=Style.TEXT) for n in range(2))
    plain = {"subset": Subset.FORGET, "split": Split.TEST, "kind": ProbeKind.LOGPROB, "metrics": ("probability",)}
    probes = tuple(Probe(str(n), **plain, items=items, max_tokens=n) for n in (255, 256))
    job = Job("x", SavedCheckpoint(untied(0)), probes)
    (wanted,) = TransformersEngine(encoder, dtype="float32", device=torch.device("cpu")).submit([job])
    (found,) = engines().submit([job])
    for n in ("255", "256"):
        (score, *_), (other, *_) = found.samples[n], wanted.samples[n]
        assert score.token_logprobs == pytest.approx(other.token_logprobs, abs=CLOSE)
        assert len(score.token_logprobs) == int(n) - 1
    (alone,) = engines(alone=True).submit([job])
    assert "fills all of the model's 256 positions" in str(alone.error)


def test_what_vllm_cannot_say_is_an_error_and_no_number(untied, engines, probes):
    import dataclasses

    probe = dataclasses.replace(probes[3], needs=(Need.VOCABULARY,))
    (found,) = engines(alone=True).submit([Job("x", SavedCheckpoint(untied(0)), (probe,))])
    assert "moments over the vocabulary" in str(found.error)
    (found,) = engines().submit([Job("x", SavedCheckpoint(untied(0)), (probe,))])
    assert found.samples["logprob"][0].vocab_means
