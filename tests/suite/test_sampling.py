"""Sampling at a temperature: frequencies against softmax, and what drawn answers must not depend on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from suite.attacks import attack
from suite.config.errors import SpecError
from suite.engines import Job
from suite.engines.questions import Questions
from suite.engines.sampling import Draw, drawn
from suite.engines.transformers.decoding import GenerationRequest, decode_plainly
from suite.engines.transformers.shortcut import Shortcut
from tasks import TASKS
from tasks.task import ProbeKind, Sampling, Split, Subset
from tests.support.architectures import HEADS, VOCABULARY, made
from tests.support.architectures import SMALL as NARROW
from tests.support.continuations import EOS, PROMPTS, one_by_one, run, same

PROMPT = (1, 2, 3)


@pytest.fixture(scope="module")
def model():
    return made(transformers.LlamaConfig(**NARROW, **HEADS))


def drawn_request(prompt, limit: int, number: int = 0, temperature: float = 1.0, seed: int = 0) -> GenerationRequest:
    return GenerationRequest(prompt, limit, draw=Draw.of(Sampling(8, temperature, seed), prompt, number))


@torch.no_grad()
def distribution(model, prompt, temperature: float) -> np.ndarray:
    logits = model(torch.tensor([prompt])).logits[0, -1].double().numpy() / temperature
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@torch.no_grad()
def by_hand(model, request: GenerationRequest) -> list[int]:
    """One token at a time, without a cache: the first whose cumulative probability exceeds the step's number."""
    new: list[int] = []
    for step in range(request.limit):
        p = distribution(model, [*request.prompt, *new], request.draw.temperature)
        token = int(np.argmax(np.cumsum(p) > request.draw.uniform(step)))
        if token == EOS:
            break
        new.append(token)
    return new


def expect(observed: Counter, p: np.ndarray, n: int) -> None:
    """Chi-square on the cells that are expected five times or more, the others together; 1 in 10,000 runs fails."""
    large = n * p >= 5
    cells = [observed[token] for token in np.flatnonzero(large)] + [sum(observed[t] for t in np.flatnonzero(~large))]
    expected = np.append(n * p[large], n * p[~large].sum())
    kept = expected > 0
    statistic = float(((np.array(cells) - expected)[kept] ** 2 / expected[kept]).sum())
    assert statistic < chi2.ppf(1 - 1e-4, kept.sum() - 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_tokens_are_as_frequent_as_softmax_says(model, temperature):
    n = 1500
    requests = [drawn_request(PROMPT, 1, number, temperature) for number in range(n)]
    found = Counter(new[0] if new else EOS for new in run(model, requests, 4000))
    expect(found, distribution(model, PROMPT, temperature), n)


def test_second_tokens_are_as_frequent_as_softmax_says_given_the_first_and_so_are_those_of_generate(model):
    n = 1500
    requests = [drawn_request(PROMPT, 2, number) for number in range(n)]
    with torch.inference_mode():
        plain = decode_plainly(model, requests, ends={EOS}, batch_tokens=1000)
    for found in (run(model, requests, 4000), plain):
        first, _ = Counter(new[0] for new in found if new).most_common(1)[0]
        seconds = Counter(new[1] if len(new) > 1 else EOS for new in found if new and new[0] == first)
        assert seconds.total() > 100
        expect(seconds, distribution(model, (*PROMPT, first), 1.0), seconds.total())


def test_draws_are_independent(model):
    """Tokens of one draw say nothing about those of the next, nor a step's number about the next step's."""
    draws = [Draw.of(Sampling(2, 1.0), PROMPT, number) for number in range(2000)]
    first, later = (np.array([draw.uniform(step) for draw in draws]) for step in (0, 1))
    assert kstest(first, "uniform").pvalue > 1e-4 and kstest(later, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first, later)[0, 1]) < 4 / 2000**0.5
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / 2000**0.5
    others = (
        [Draw.of(Sampling(2, 1.0, 1), PROMPT, n) for n in range(2000)],
        [Draw.of(Sampling(2, 1.0), (*PROMPT, 4), n) for n in range(2000)],
    )
    for other in others:
        assert abs(np.corrcoef(first, [draw.uniform(0) for draw in other])[0, 1]) < 4 / 2000**0.5


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=6),
    st.floats(0.1, 5),
    st.floats(0, 1, exclude_max=True),
)
def test_a_token_is_drawn_where_its_share_of_the_interval_is(logits, temperature, uniform):
    (token,) = drawn(torch.tensor([logits]), [temperature], [uniform]).tolist()
    p = np.exp(np.array(logits, dtype=np.float64) / temperature)
    edges = np.concatenate([[0.0], np.cumsum(p / p.sum())])
    assert edges[token] - 1e-12 <= uniform <= edges[token + 1] + 1e-12


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    assert drawn(logits, [1.0] * 4, [0.0, 0.499, 0.501, 1 - 2**-53]).tolist() == [1, 1, 3, 3]


def test_answers_are_those_drawn_one_token_at_a_time(model):
    requests = [drawn_request(prompt, 4 + i % 5, i, 1.5) for i, prompt in enumerate(PROMPTS)]
    expected = [by_hand(model, request) for request in requests]
    assert run(model, requests, 60) == expected
    with torch.inference_mode():
        assert decode_plainly(model, requests, ends={EOS}, batch_tokens=60) == expected
    assert len({len(new) for new in expected}) > 2


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(PROMPTS), st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
def test_answers_alone_are_those_in_company(model, cases):
    """Greedy and drawn ones in one batch, of the same prompts."""
    requests = [drawn_request(p, 6, number) if is_drawn else GenerationRequest(p, 6) for p, number, is_drawn in cases]
    for request, new in zip(requests, run(model, requests, 50), strict=True):
        if request.draw:
            assert new == by_hand(model, request)
        else:
            assert same(model, request, new, one_by_one(model, request))


def test_a_shorter_limit_is_the_beginning_of_the_same_answer(model):
    short, long = run(model, [drawn_request(PROMPT, 3)]), run(model, [drawn_request(PROMPT, 9)])
    assert short[0] == long[0][:3]


def test_cold_draws_are_the_greedy_answer(model):
    requests = [drawn_request(prompt, 8, temperature=1e-4) for prompt in PROMPTS]
    for request, new in zip(requests, run(model, requests), strict=True):
        assert same(model, request, new, one_by_one(model, request))


def test_drawn_continuations_are_witnesses_too():
    """The largest logit of each step is compared, whichever token was drawn: a window is found as with greedy."""
    windowed = made(transformers.MistralConfig(**NARROW, **HEADS, sliding_window=8))
    decoding, requests = Shortcut(), [drawn_request(PROMPT, 20, temperature=1.5)]
    (found,) = run(windowed, requests, decoding=decoding, eos=VOCABULARY - 1)
    with torch.inference_mode():
        plain = decode_plainly(windowed, requests, ends={VOCABULARY - 1}, batch_tokens=64)
    assert not decoding.sound and [found] == plain
    decoding = Shortcut()
    run(made(transformers.LlamaConfig(**NARROW, **HEADS)), requests, decoding=decoding)
    assert decoding.sound and decoding.checked


@pytest.fixture(scope="module")
def scene(scene):
    subject, context = scene
    probes = [p for p in subject.probes if p.kind is ProbeKind.GENERATE or p.name == "forget_qa"]
    short = tuple(replace(probe, items=probe.items[:5], max_new_tokens=5) for probe in probes)
    return replace(subject, probes=short), context


def samples_of(subject, context):
    (result,) = context.engine.submit([Job("x", subject.checkpoint, subject.probes)])
    assert not result.error
    return result.samples


def attacked(scene, **settings_):
    ((_, found),) = attack({"name": "sample", **settings_}).apply(*scene)
    return found


def test_samples_hold_all_draws_and_other_probes_are_asked_as_before(scene):
    subject, context = scene
    before, after = samples_of(subject, context), samples_of(attacked(scene, draws=3), context)
    for probe in subject.probes:
        pairs = zip(before[probe.name], after[probe.name], strict=True)
        for plain, several in pairs:
            if probe.kind is ProbeKind.GENERATE:
                assert len(several.sampled) == 3 and several.generated == several.sampled[0]
                assert (several.item, several.reference) == (plain.item, plain.reference)
                assert plain.sampled is None
            else:
                assert several == plain
    texts = {text for sample in after["forget_qa_generated"] for text in sample.sampled}
    assert len(texts) > 5


def test_more_draws_begin_with_the_same_and_another_seed_has_others(scene):
    _, context = scene
    name = "forget_qa_generated"
    two, three = (samples_of(attacked(scene, draws=n), context)[name] for n in (2, 3))
    assert [s.sampled for s in two] == [s.sampled[:2] for s in three]
    other = samples_of(attacked(scene, draws=2, seed=1), context)[name]
    assert [s.sampled for s in two] != [s.sampled for s in other]
    elsewhere = samples_of(attacked((scene[0], replace(context, seed=1)), draws=2), context)[name]
    assert [s.sampled for s in two] != [s.sampled for s in elsewhere]


def test_a_prompt_that_is_asked_in_two_ways_gets_both_answers(scene):
    subject, context = scene
    plain = next(p for p in subject.probes if p.name == "forget_qa_generated")
    hot = replace(plain, name="hot", sampling=Sampling(2, 2.0))
    longer = replace(hot, name="longer", max_new_tokens=7)
    requests = Questions(context.encoder, [plain, hot, longer]).generation_requests
    assert len(requests) == 3 * len(plain.items)
    together = samples_of(replace(subject, probes=(plain, hot, longer)), context)
    for probe in (plain, hot, longer):
        assert together[probe.name] == samples_of(replace(subject, probes=(probe,)), context)[probe.name]


def test_without_heat_it_is_the_subject_itself(scene):
    assert attacked(scene, draws=4, temperature=0.0) == scene[0]


def test_a_task_that_generates_no_forget_answer_is_refused():
    task = TASKS["pocket"].build()
    one = attack({"name": "sample", "draws": 2})
    one.check(task, Split.DEV)
    without = tuple(p for p in task.probes if p.kind is not ProbeKind.GENERATE or p.subset is not Subset.FORGET)
    with pytest.raises(SpecError, match=r"attacks: sample\[draws=2\]: no forget answer of pocket is generated on dev"):
        one.check(replace(task, probes=without), Split.DEV)
