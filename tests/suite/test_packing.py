"""Texts that share prefixes: rows against brute force, their scores against one text at a time."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.engines.scores import ScoreRequest, scored
from suite.engines.transformers.packing import ROW_COST, additive, pack
from suite.engines.transformers.shortcut import Shortcut
from suite.models.encoding import Encoded
from tests.support.architectures import ARCHITECTURES, TAKES_ROWS, VOCABULARY, made

CLOSE = 1e-4

texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=8)


def score_requests(n: int, longest: int = 12, seed: int = 0) -> list[ScoreRequest]:
    """Requests for texts of 2 to `longest` tokens, most of which share a prefix with another one."""
    draw = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *size: int) -> list[int]:
        return torch.randint(low, high, size, generator=draw).tolist()

    found: list[ScoreRequest] = []
    for i in range(n):
        trunk = found[i // 2].text.ids[: ints(0, longest, 1)[0]] if i % 3 else ()
        ids = (*trunk, *ints(0, VOCABULARY, longest))[: ints(2, longest + 1, 1)[0]]
        found.append(ScoreRequest(Encoded(ids, ints(1, len(ids), 1)[0])))
    return found


@torch.no_grad()
def one_by_one(model, text: Encoded):
    logp = model(input_ids=torch.tensor([text.ids])).logits[0].double().log_softmax(-1)[text.start - 1 : -1]
    labels = torch.tensor(text.ids[text.start :])
    p = logp.exp()
    mean = (p * logp).sum(-1)
    right = (logp.argmax(-1) == labels).tolist()
    return logp.gather(-1, labels[:, None])[:, 0].tolist(), right, mean.tolist(), (p * logp**2).sum(-1) - mean**2


def score(model, requests, row_tokens: int = 64, batch_tokens: int = 64, packing: Shortcut | None = None):
    with torch.inference_mode():
        return scored(model, requests, row_tokens=row_tokens, batch_tokens=batch_tokens, packing=packing or Shortcut())


@given(texts, st.integers(1, 30))
def test_a_position_attends_to_the_beginning_of_its_text_and_to_nothing_else(many, limit):
    for row in pack(many, limit):
        attends = row.attends()
        for _, path in row.paths:
            for depth, position in enumerate(path):
                assert attends[position].nonzero().flatten().tolist() == list(path[: depth + 1])
                assert row.depths[position] == depth


@given(texts, st.integers(1, 30))
def test_every_text_is_in_one_row_and_nothing_is_computed_twice_within_it(many, limit):
    rows = pack(many, limit)
    assert sorted(index for row in rows for index, _ in row.paths) == list(range(len(many)))
    for row in rows:
        assert all(tuple(row.ids[p] for p in path) == many[index] for index, path in row.paths)
        of_row = {many[index] for index, _ in row.paths}
        assert len(row.ids) == len({text[:n] for text in of_row for n in range(1, len(text) + 1)})
        assert len(row.ids) <= limit or len(of_row) == 1
        assert row.branches == (len(row.ids) > max(map(len, of_row)))


@given(texts.filter(lambda many: len(many) < 7), st.integers(1, 20))
def test_rows_are_cut_where_the_least_is_computed(many, limit):
    order = sorted(many)

    def cost(part) -> float:
        size = len({text[:n] for text in part for n in range(1, len(text) + 1)})
        return size + ROW_COST if size <= limit or len(part) == 1 else float("inf")

    ways = ([0, *cuts, len(order)] for n in range(len(order)) for cuts in combinations(range(1, len(order)), n))
    least = min(sum(cost(order[a:b]) for a, b in pairwise(cuts)) for cuts in ways)
    assert sum(len(row.ids) + ROW_COST for row in pack(many, limit)) <= least


def test_an_additive_mask_is_0_where_it_attends():
    mask = additive(torch.tensor([[True, False]]), torch.float32)
    assert mask.tolist() == [[0.0, torch.finfo(torch.float32).min]]


def test_a_row_that_is_one_text_needs_no_mask():
    (row,) = pack([(1, 2, 3), (1, 2), (1,)], 10)
    assert "attention_mask" not in row.inputs(torch.device("cpu"), torch.float32)
    (row,) = pack([(1, 2, 3), (1, 4)], 10)
    assert row.inputs(torch.device("cpu"), torch.float32)["attention_mask"].shape == (1, 1, 4, 4)


@pytest.mark.parametrize("row_tokens", [1, 20, 1000])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_one_text_at_a_time_in_every_architecture(name, row_tokens):
    model, requests = (
        made(ARCHITECTURES[name]),
        [ScoreRequest(a.text, i % 2 == 0) for i, a in enumerate(score_requests(25))],
    )
    packing = Shortcut()
    for request, found in zip(requests, score(model, requests, row_tokens, packing=packing), strict=True):
        logprobs, right, means, variances = one_by_one(model, request.text)
        assert found.logprobs == pytest.approx(logprobs, abs=CLOSE)
        assert found.right == tuple(right)
        if request.vocabulary:
            assert found.means == pytest.approx(means, abs=CLOSE)
            assert found.variances == pytest.approx(variances.tolist(), abs=CLOSE)
        else:
            assert found.means is None and found.variances is None
    if row_tokens > 1:  # else every row is a single text
        assert packing.sound == (name in TAKES_ROWS)


def test_a_window_is_found_when_a_text_is_longer_than_it():
    model, packing = made(ARCHITECTURES["a window of 4"]), Shortcut()
    short, long = score_requests(12, longest=4), score_requests(12, longest=12)
    score(model, short, packing=packing)
    assert packing.sound, "within the window nothing differs"
    found = score(model, long, packing=packing)
    assert not packing.sound
    for request, of_text in zip(long, found, strict=True):
        assert of_text.logprobs == pytest.approx(one_by_one(model, request.text)[0], abs=CLOSE)


def test_answers_of_one_token_cost_no_more_than_the_prompt_that_they_share():
    """Published code passes the prompt through the model once per choice."""
    model, prompt = made(ARCHITECTURES["grouped heads"]), (3, 1, 4, 1, 5, 9, 2, 6)
    passed = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: passed.append(args[0].numel()))
    requests = [ScoreRequest(Encoded((*prompt, letter), len(prompt))) for letter in (10, 11, 12, 13)]
    found = score(model, requests)
    assert sum(passed) == len(prompt)
    assert [f.logprobs[0] for f in found] == pytest.approx([one_by_one(model, q.text)[0][0] for q in requests])


def test_a_text_without_an_answer_has_no_numbers():
    model = made(ARCHITECTURES["grouped heads"])
    empty, one = Encoded((5,), 1), Encoded((5, 6), 1)
    first, second, third = score(model, [ScoreRequest(empty), ScoreRequest(one), ScoreRequest(empty, vocabulary=True)])
    assert first.logprobs == third.logprobs == third.means == ()
    assert first.means is None and len(second.logprobs) == 1
    assert score(model, []) == []


def test_rows_of_bf16_are_trusted_although_their_numbers_are_coarse():
    model, packing = made(ARCHITECTURES["grouped heads"]).to(torch.bfloat16), Shortcut()
    score(model, score_requests(25), packing=packing)
    assert packing.sound and packing.checked


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 25), st.integers(1, 60), st.integers(0, 5))
def test_scores_depend_neither_on_the_row_nor_on_what_else_is_asked(n, row_tokens, seed):
    model, requests = made(ARCHITECTURES["grouped heads"]), score_requests(25, seed=seed)
    for some, whole in zip(score(model, requests[:n], row_tokens), score(model, requests), strict=False):
        assert some.logprobs == pytest.approx(whole.logprobs, abs=CLOSE)


def test_a_way_is_trusted_as_far_as_it_was_compared():
    way = Shortcut()
    assert way.compare([1.0, 2.0], [1.0, 2.0005], 7, torch.float32) and way.checked == 7
    with pytest.raises(ValueError, match="worked before"):
        way.refused(ValueError("worked before"))
    assert not way.compare([1.0], [1.002], 9, torch.float32)
    assert not Shortcut().compare([float("nan")], [1.0], 9, torch.float32), "NaN agrees with nothing"
    assert Shortcut().compare([20.0], [20.5], 9, torch.bfloat16), "as coarse as bf16 is"
    assert not Shortcut().compare([20.0], [28.0], 9, torch.bfloat16)
    fresh = Shortcut()
    fresh.refused(TypeError("takes no mask"))
    assert not fresh.sound
    with pytest.raises(torch.OutOfMemoryError):
        Shortcut().refused(torch.OutOfMemoryError("full"))


def test_a_wrecked_model_does_not_decide_how_the_next_is_asked():
    """Equal rows must not depend on which checkpoint an engine saw before."""
    shortcut = Shortcut()
    assert shortcut.compare([float("nan")], [float("nan")], 5, torch.float32)
    assert (shortcut.sound, shortcut.checked) == (True, 0)
    assert shortcut.compare([-20_000.001], [-20_000.0], 5, torch.float32)  # a rounding of so large a number
    assert not shortcut.compare([-2.01], [-2.0], 5, torch.float32)
    assert not Shortcut().compare([float("nan")], [-2.0], 5, torch.float32)
