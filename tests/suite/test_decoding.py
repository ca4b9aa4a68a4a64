"""Greedy decoding in a full batch, against `model.generate` for each prompt."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from suite.engines.transformers.decoding import GenerationRequest, decode, decode_plainly, plain_best
from suite.engines.transformers.grouped_attention import grouped, grouped_attention
from suite.engines.transformers.shortcut import Shortcut
from tests.support.architectures import ARCHITECTURES, HEADS, SMALL, TAKES_ROWS, VOCABULARY, made
from tests.support.continuations import CLOSE, EOS, PROMPTS, one_by_one, run, same


@pytest.fixture(scope="module")
def model():
    return made(transformers.LlamaConfig(**SMALL, **HEADS))


@pytest.mark.parametrize("batch_tokens", [1, 60, 1000])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_continuations_are_those_of_one_prompt_at_a_time_in_every_architecture(name, batch_tokens):
    model, decoding = made(ARCHITECTURES[name]), Shortcut()
    requests = [GenerationRequest(prompt, 3 + 4 * (i % 4)) for i, prompt in enumerate(PROMPTS)]
    found = run(model, requests, batch_tokens, decoding)
    for request, new in zip(requests, found, strict=True):
        assert same(model, request, new, one_by_one(model, request))
    assert len({len(new) for new in found}) > 2, "rows end at different steps"
    assert decoding.sound == (name in TAKES_ROWS)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(1, 80),
)
def test_continuations_do_not_depend_on_who_else_is_in_the_batch(model, prompts, batch_tokens):
    requests = [GenerationRequest(tuple(prompt), limit) for prompt, limit in prompts]
    for request, new in zip(requests, run(model, requests, batch_tokens), strict=True):
        (alone,) = run(model, [request])
        assert same(model, request, new, alone)


def test_the_end_of_text_token_ends_a_row_and_is_no_part_of_it(model):
    request = GenerationRequest((1, 2, 3), 12)
    free = one_by_one(model, request, eos=VOCABULARY - 1)
    end = next(i for i, token in enumerate(free) if i and token not in free[:i])
    (found,) = run(model, [request], eos=free[end])
    assert found == free[:end]


def test_no_token_is_computed_after_a_row_has_ended_and_none_for_padding(model):
    """Published code goes on with every row of a batch until its longest has ended."""
    requests = [
        GenerationRequest((1, 2, 3), 2),
        GenerationRequest((1, 2, 4), 9),
        GenerationRequest((1, 2, 3, 4), 1),
        GenerationRequest((1, 2), 5),
    ]
    passed: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: passed.append(args[0].numel()))
    try:
        with torch.inference_mode():
            found = decode(model, requests, ends={EOS}, row_tokens=16, batch_tokens=1000)
    finally:
        hook.remove()
    tree = {r.prompt[:n] for r in requests for n in range(1, len(r.prompt) + 1)}
    # One position to measure the size of a cache entry; the last token of a row is not an input.
    assert sum(passed) == 1 + len(tree) + sum(len(c.best) - 1 for c in found)


def test_waiting_prompts_take_the_rows_that_are_free(model):
    """More prompts than rows: the batch stays full, so long continuations do not add steps of nearly empty batches."""
    requests = [GenerationRequest((1 + i, 2), 2 if i % 4 else 17) for i in range(24)]
    rows: list[int] = []

    def count(_, args):
        if args[0].shape[1] == 1:
            rows.append(len(args[0]))

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        with torch.inference_mode():
            found = decode(model, requests, ends={VOCABULARY - 1}, row_tokens=16, batch_tokens=76)
    finally:
        hook.remove()
    most = max(rows)
    assert most < 24
    assert len(rows) < 2 * sum(len(c.best) for c in found) / most


def test_the_first_of_equal_logits_wins_as_torch_argmax_has_it(model):
    flat = made(transformers.LlamaConfig(**SMALL, **HEADS))
    flat.lm_head.weight.data.zero_()
    assert run(flat, [GenerationRequest((1, 2), 3), GenerationRequest((4,), 2)]) == [[0, 0, 0], [0, 0]]


def test_a_request_says_when_it_has_enough(model):
    free = one_by_one(model, GenerationRequest((1, 2, 3), 9))
    seen: list[list[int]] = []

    def ended(new) -> bool:
        seen.append(list(new))
        return len(new) == 4

    (found, other) = run(model, [GenerationRequest((1, 2, 3), 9, ended), GenerationRequest((1, 2), 6)])
    assert found == free[:4] and seen == [free[:n] for n in range(1, 5)]
    assert len(other) == 6 or EOS in other


def test_what_is_compared_is_every_step_of_the_longest_text(model):
    requests = [GenerationRequest(prompt, 12) for prompt in PROMPTS]
    with torch.inference_mode():
        for continuation in decode(model, requests, ends={EOS}, row_tokens=16, batch_tokens=60):
            with_end = [*continuation.new, *([EOS] if len(continuation.new) < 12 else [])]
            assert len(continuation.best) == len(with_end)
            assert continuation.best == pytest.approx(plain_best(model, continuation), abs=CLOSE)


def test_a_window_is_found_when_a_continuation_grows_beyond_it():
    """The first token after a prompt shows nothing of a window that is longer than the prompt."""
    config = transformers.MistralConfig(**SMALL, **HEADS, sliding_window=8)
    model, decoding = made(config), Shortcut()
    short, long = [GenerationRequest((1, 2, 3), 4)], [GenerationRequest((1, 2, 3), 20)]
    run(model, short, decoding=decoding, eos=VOCABULARY - 1)
    assert decoding.sound
    (found,) = run(model, long, decoding=decoding, eos=VOCABULARY - 1)
    assert not decoding.sound and same(model, long[0], found, one_by_one(model, long[0], eos=VOCABULARY - 1))


def test_a_window_is_found_although_the_longest_text_repeats_one_token():
    """Through any window such a text looks the same; here the other one shows the difference."""
    model, decoding = made(ARCHITECTURES["a window in some layers"]), Shortcut()
    requests = [GenerationRequest((9, 9, 9, 9), 15), GenerationRequest((1, 2, 4, 5, 6, 1, 1), 7)]
    found = run(model, requests, decoding=decoding)
    assert set(found[0]) == {9}
    assert not decoding.sound and same(model, requests[1], found[1], one_by_one(model, requests[1]))


def test_generate_in_batches_is_there_for_all_architectures(model):
    requests = [GenerationRequest(prompt, 3 + i) for i, prompt in enumerate(PROMPTS)]
    with torch.inference_mode():
        found = decode_plainly(model, requests, ends={EOS}, batch_tokens=60)
    for request, new in zip(requests, found, strict=True):
        assert same(model, request, new, one_by_one(model, request))
    assert run(model, []) == []


@pytest.mark.parametrize("queries", [1, 3])
def test_grouped_attention_is_attention_over_repeated_keys(queries):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, queries, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    mask = torch.zeros(2, 1, queries, 5)
    mask[1, :, :, 3:] = torch.finfo(torch.float32).min
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    mine, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.3 + mask
    plain = (scores.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(mine, plain)
    torch.testing.assert_close(mine, theirs)


def test_a_model_attends_as_before_once_decoding_is_over(model):
    usual = model.config._attn_implementation
    with pytest.raises(KeyError), grouped(model):
        assert model.config._attn_implementation != usual
        raise KeyError
    assert model.config._attn_implementation == usual
