"""The fingerprint of weights: independent of their layout, but not of their values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.engines.vllm.fingerprint import MODULUS, SPREAD, combined, word_sum


def fingerprint(tensors) -> int:
    return combined(map(word_sum, tensors))


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def by_hand(tensor: torch.Tensor) -> int:
    """The definition, number by number, in Python's integers."""
    kind = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    total = 0
    for x in tensor.reshape(-1).view(kind).tolist():
        term = x * (x + SPREAD) % 2**32
        total += term - 2**32 if term >= 2**31 else term
    return total % MODULUS


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 9), columns=st.integers(1, 17), dtype=st.sampled_from(DTYPES))
def test_it_is_what_it_says_and_does_not_see_the_layout(seed, rows, columns, dtype):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)
    assert fingerprint([weight]) == by_hand(weight)
    for same in (weight.T, weight.flip(0), weight.reshape(-1), torch.cat([weight, torch.zeros_like(weight)])):
        assert fingerprint([same]) == fingerprint([weight])
    parts = weight.split([rows // 2, rows - rows // 2])
    assert fingerprint(parts) == fingerprint([weight])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), place=st.integers(0, 499), dtype=st.sampled_from(DTYPES), step=st.integers(1, 2**15))
def test_one_number_that_changes_changes_it(seed, place, dtype, step):
    weight = torch.randn(500, generator=torch.Generator().manual_seed(seed)).to(dtype)
    other = weight.clone()
    bits = other.view({2: torch.int16, 4: torch.int32}[other.element_size()])
    bits[place] += step
    assert fingerprint([other]) != fingerprint([weight])


def test_a_step_up_and_a_step_down_do_not_cancel():
    weight = torch.full((64,), 0.75, dtype=torch.bfloat16)
    other = weight.clone()
    bits = other.view(torch.int16)
    bits[3] += 1
    bits[40] -= 1
    assert int(word_sum(other)) != int(word_sum(weight))


def test_no_two_numbers_of_16_bits_have_the_same_term():
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    assert (x * (x + SPREAD)).unique().numel() == 2**16


def test_nothing_is_nothing():
    assert fingerprint([]) == fingerprint([torch.empty(0)]) == fingerprint([torch.zeros(3, 5)]) == 0


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 5])
def test_chunks_add_up(size):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(size))
    assert fingerprint([weight]) == fingerprint(weight.split(1000))
