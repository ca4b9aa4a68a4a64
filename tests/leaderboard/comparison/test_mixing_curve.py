"""Numbers read along mixing curves whose truth is known: exactly, and with the luck of the questions in intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard.ranking.comparison import Cell, Cells, Replicated, Replicates, Resampling, Units, replicate, spread
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.mixing_curve import ROUNDING, Reading, Unread, barrier, beside, between, crossing, read
from suite.evaluation.retention_matching import HALVINGS, QUARTERS, next_weight, weights_to_attack

ATTACKS = ("none", "rtn", "relearn")
ITEMS, REPLICATES = 150, 400
FLOOR = 0.9


def known(weight: float, attack: str) -> float:
    """Knowledge that is left, as a share of the distance between the anchors: it falls ever faster."""
    return 1 - {"none": 0.9, "rtn": 0.8, "relearn": 0.55}[attack] * weight**2


LATE, EARLY = 3.0, 0.6


def utility(weight: float, shape: float = LATE) -> float:
    """It holds for long, then falls; or it falls early, below the straight line."""
    return 1 - 0.35 * weight**shape


def truth(floor: float, weights: tuple[float, ...], shape: float = LATE) -> dict[str, float]:
    """Where the lines between true values at the weights cross the floor, by `numpy.interp` on both axes."""
    heights = [utility(weight, shape) for weight in weights]
    at = float(np.interp(-floor, [-height for height in heights], weights)) if heights[-1] < floor else 1.0
    forgetting, robustness = (
        float(np.interp(at, weights, [1 - known(weight, attack) for weight in weights]))
        for attack in ("none", "relearn")
    )
    left = max(floor, heights[-1])
    return {
        "weight": at,
        "forgetting": forgetting,
        "robustness": robustness,
        "utility": left,
        "score": 3 / (1 / forgetting + 1 / robustness + 1 / left),
        "barrier": max((1 - w) + w * heights[-1] - height for w, height in zip(weights, heights, strict=True)),
    }


@cache
def pools() -> list[tuple[Resampling, Resampling]]:
    items = [f"q{number}" for number in range(ITEMS)]
    return [
        (Resampling.of(f"known of {pool}", items, REPLICATES), Resampling.of(f"useful of {pool}", items, REPLICATES))
        for pool in range(25)
    ]


def drawn_world(rng: np.random.Generator, noise: float, shape: float = LATE) -> Callable[[float], Replicates]:
    """By mixing weight the replicates of a model, whose answers have the true shares as means over many questions."""
    of_known, of_useful = pools()[rng.integers(len(pools()))]
    difficulty = rng.normal(size=(2, ITEMS))
    target, useful_target = 1 / (1 + np.exp(-2.0 - difficulty))
    retrained = 0.1 * np.exp(0.2 * rng.normal(size=ITEMS))
    own = noise * rng.normal(size=(2, len(ATTACKS), ITEMS))  # of the questions: they change unevenly along the way
    own_useful = noise * rng.normal(size=(2, ITEMS))
    distance = target - retrained
    units, useful_units = Units.of([(of_known, distance)]), Units.of([(of_useful, useful_target)])

    def model(weight: float) -> Replicates:
        cells = {
            Cell(attack, 0, 0): known(weight, attack) * distance
            + weight * own[0, place]
            + weight * (1 - weight) * own[1, place]
            for place, attack in enumerate(ATTACKS)
        }
        kept = {
            Cell("none", 0, 0): utility(weight, shape) * useful_target
            + weight * own_useful[0]
            + weight * (1 - weight) * own_useful[1]
        }
        return replicate(Cells.of(units, cells), Cells.of(useful_units, kept))

    return model


def measured(model: Callable[[float], Replicates], floor: float) -> tuple[Reading, tuple[float, ...], list[float]]:
    """What is read after measuring as a trial does; the weights with utility, and those that were attacked."""
    heights = {weight: model(weight).utility for weight in (*QUARTERS, 1.0)}
    heights[0.0] = np.ones_like(heights[1.0])
    for _ in range(HALVINGS):
        weight = next_weight(heights, floor)
        if weight is None:
            break
        heights[weight] = model(weight).utility
    weights = sorted(heights)
    plain = crossing(weights, np.array([heights[weight][:1] for weight in weights]), floor)[0]
    attacked = weights_to_attack(heights, plain, floor)
    reading = read(heights, {weight: model(weight) for weight in (0.0, *attacked, 1.0)}, floor)
    return reading, tuple(weights), attacked


def by_name(reading: Reading) -> dict[str, Array]:
    names = ("forgetting", "robustness", "utility", "score")
    return {
        **{name: getattr(reading.replicates, name) for name in names},
        "weight": reading.weight,
        "barrier": reading.barrier,
    }


@pytest.mark.parametrize("floor", [0.66, 0.75, 0.9, 0.97])
def test_without_noise_the_read_numbers_are_the_true_ones_at_the_floor(floor):
    reading, weights, attacked = measured(drawn_world(np.random.default_rng(0), 0.0), floor)
    expected = truth(floor, weights)
    for name, found in by_name(reading).items():
        assert found == pytest.approx(expected[name], abs=1e-5), name
    assert 1 <= len(attacked) <= 2 and min(attacked) - 1e-9 <= expected["weight"]
    # Between neighbours 1/32 apart, a line is as good as the curve.
    exact = ((1 - floor) / 0.35) ** (1 / 3)
    assert expected["weight"] == pytest.approx(exact, abs=0.003)
    assert expected["forgetting"] == pytest.approx(1 - known(exact, "none"), abs=0.003)


def test_weights_that_keep_the_floor_are_read_as_they_are():
    model = drawn_world(np.random.default_rng(1), 0.1)
    reading, _, attacked = measured(model, 0.3)
    raw = model(1.0)
    assert attacked == [] and (reading.weight == 1).all()
    for name in ("forgetting", "robustness", "robustness_harmonic", "utility"):
        assert np.array_equal(getattr(reading.replicates, name), getattr(raw, name)), name
    assert np.allclose(reading.replicates.score, raw.score, rtol=1e-12)
    assert all(np.array_equal(reading.replicates.recovery[attack], raw.recovery[attack]) for attack in ATTACKS)


def coverage(draws: int, seed: int, noise: float = 0.35, shape: float = LATE) -> tuple[dict[str, float], list[int]]:
    rng = np.random.default_rng(seed)
    held = {name: [] for name in ("forgetting", "robustness", "score", "weight", "barrier")}
    counts = []
    for _ in range(draws):
        reading, weights, attacked = measured(drawn_world(rng, noise, shape), FLOOR)
        expected, found = truth(FLOOR, weights, shape), by_name(reading)
        counts.append(len(attacked))
        for name, rows in held.items():
            number = found[name]
            told = spread(Replicated(number, {"one": float(number[0])}), "entry")
            rows.append(told.low <= expected[name] <= told.high)
    return {name: float(np.mean(rows)) for name, rows in held.items()}, counts


@pytest.mark.parametrize("shape", [LATE, EARLY])
def test_intervals_hold_the_truth_in_a_small_simulation(shape):
    held, counts = coverage(60, seed=3, shape=shape)
    # With 60 draws of a 95 % interval, fewer than 50 hits happen once in a thousand times.
    assert all(share >= 50 / 60 for share in held.values()), held
    assert 1 <= np.mean(counts) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.35, 0.7])
@pytest.mark.parametrize("shape", [LATE, EARLY])
def test_intervals_hold_the_truth(noise, shape):
    held, _ = coverage(1000, seed=4, noise=noise, shape=shape)
    assert all(share >= 0.92 for share in held.values()), held


def curves(rng: np.random.Generator, count: int, columns: int) -> tuple[list[float], Array]:
    inner = np.sort(rng.choice(np.arange(1, 64), count, replace=False) / 64).tolist()
    heights = np.vstack([np.ones(columns), rng.uniform(0.3, 1.2, (count + 1, columns))])
    return [0.0, *inner, 1.0], heights


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_values_between_weights_are_those_of_numpy(seed, count):
    rng = np.random.default_rng(seed)
    weights, values = curves(rng, count, 7)
    at = np.concatenate([rng.uniform(-0.2, 1.2, 4), rng.choice(weights, 3)])
    expected = [np.interp(place, weights, column) for place, column in zip(at, values.T, strict=True)]
    assert between(weights, values, at) == pytest.approx(np.array(expected), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.floats(0.35, 1))
def test_the_crossing_is_the_largest_weight_at_the_floor_however_often_the_curve_crosses(seed, count, floor):
    weights, heights = curves(np.random.default_rng(seed), count, 5)
    found = crossing(weights, heights, floor)
    for at, column in zip(found, heights.T, strict=True):
        grid = np.linspace(0, 1, 6401)  # the weights are on it
        assert (np.interp(grid[grid > at + 1e-6], weights, column) < floor).all()
        height = np.interp(at, weights, column)
        assert height >= floor - 1e-6
        assert at == 1 or height == pytest.approx(floor, abs=1e-6)


def test_a_curve_that_comes_back_to_the_floor_is_read_at_its_last_crossing_and_has_a_barrier():
    weights, heights = [0.0, 0.25, 0.5, 0.75, 1.0], np.array([[1.0], [0.7], [0.6], [0.95], [0.85]])
    assert crossing(weights, heights, 0.9) == pytest.approx([0.875])
    assert barrier(weights, heights) == pytest.approx([0.925 - 0.6])
    # One that stands at the floor at its end is read there, whatever lies between.
    heights[-1] = 0.9 - ROUNDING / 2
    assert crossing(weights, heights, 0.9) == pytest.approx([1.0])


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_the_barrier_is_read_in_every_column_where_the_first_falls_most(seed, count):
    weights, heights = curves(np.random.default_rng(seed), count, 4)
    below = [np.interp(weights, [0, 1], column[[0, -1]]) - column for column in heights.T]
    found = barrier(weights, heights)
    assert found[0] == pytest.approx(max(below[0]))
    if count:
        there = 1 + int(np.argmax(below[0][1:-1]))
        assert found == pytest.approx([max(0.0, column[there]) for column in below])
    else:
        assert not found.any()


@given(st.integers(0, 2**32 - 1), st.floats(0.4, 0.99))
def test_attacked_weights_lie_around_nearly_every_crossing(seed, floor):
    rng = np.random.default_rng(seed)
    weights, heights = curves(rng, 5, 200)
    heights[1:] = heights[1:, :1] + 0.03 * rng.normal(size=heights[1:].shape)
    utility_along = dict(zip(weights, heights, strict=True))
    at = crossing(weights, heights, floor)
    attacked = [0.0, *weights_to_attack(utility_along, at[0], floor), 1.0]
    neighbours = [[max(w for w in weights if w <= one), min(w for w in weights if w >= one)] for one in at]
    inside = [set(pair) <= set(attacked) for pair in neighbours]
    assert inside[0] and np.mean(inside) >= 0.98
    used = beside(attacked, utility_along, floor)
    assert used[0] <= at.min() and at.max() <= used[-1]


def test_a_crossing_beside_a_weight_that_was_not_attacked_is_not_read():
    model = drawn_world(np.random.default_rng(2), 0.1)
    heights = {weight: model(weight).utility for weight in (0.0, *QUARTERS, 1.0)}
    with pytest.raises(Unread, match=r"the weights with a share of 0\.5 were not measured under every attack"):
        read(heights, {weight: model(weight) for weight in (0.0, 1.0)}, FLOOR)


def test_pieces_are_halved_until_they_are_shorter_than_the_luck_of_the_questions():
    def halved(spread_of: float) -> Iterator[float]:
        heights = {
            w: 1 - 0.3 * w + np.concatenate([[0.0], w * spread_of * np.linspace(-1, 1, 401)])
            for w in (0, 0.25, 0.5, 0.75, 1)
        }
        while (weight := next_weight(heights, FLOOR)) is not None:
            yield weight
            heights[weight] = 1 - 0.3 * weight + np.concatenate([[0.0], weight * spread_of * np.linspace(-1, 1, 401)])

    assert list(halved(1e-4)) == [0.375, 0.3125, 0.34375]
    assert list(halved(0.06)) == [0.375]
    assert list(halved(0.2)) == []
