"""The draws of items: what they are, and what they do not depend on."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from leaderboard.ranking.comparison import Resampling
from leaderboard.ranking.comparison.resampling import FOLDS

DRAWN = {
    "q0": [1.0, 1.0, 1.0, 0.0],
    "q1": [0.0, 1.0, 3.0, 1.0],
    "q2": [0.0, 1.0, 0.0, 2.0],
    "q3": [2.0, 0.0, 2.0, 0.0],
    "q4": [0.0, 2.0, 0.0, 3.0],
    "q5": [3.0, 1.0, 0.0, 0.0],
}
FOLDED = {"q0": 0, "q3": 0, "q2": 1, "q4": 2, "q5": 3, "q1": 4}
ITEMS = [f"question {number}" for number in range(37)]


def by_item(draws: Resampling) -> dict[str, list[float]]:
    """How often each item is drawn in each replicate, by its id."""
    return {draws.sorted_items[place]: row.tolist() for place, row in zip(draws.order, draws.weights, strict=True)}


def folds_of(draws: Resampling) -> dict[str, int]:
    return {
        draws.sorted_items[draws.order[row]]: number
        for number, fold in enumerate(draws.folds)
        for row in range(fold.start, fold.stop)
    }


def test_the_draws_do_not_depend_on_the_order_of_the_items():
    one, other = Resampling.of("probe", ITEMS, 50), Resampling.of("probe", ITEMS[::-1], 50)
    assert by_item(one) == by_item(other)
    assert folds_of(one) == folds_of(other)


def test_another_process_draws_the_same_bit_for_bit():
    code = (
        "import hashlib, sys; from leaderboard.ranking.comparison import Resampling;"
        f"draws = Resampling.of('probe', {ITEMS!r}, 300);"
        "print(hashlib.sha256(draws.weights.tobytes() + draws.order.tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", **PATHS}, {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", **PATHS})
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


PATHS = {"PYTHONPATH": ":".join(path for path in sys.path if path)}


def test_the_draws_are_these():
    # Another stream or another rounding would change every table that was ever printed.
    draws = Resampling.of("probe", [f"q{number}" for number in range(6)], 4)
    assert {item: row[1:] for item, row in by_item(draws).items()} == DRAWN
    assert folds_of(draws) == FOLDED


def test_the_sample_itself_comes_first_and_each_replicate_has_as_many_items():
    draws = Resampling.of("probe", ITEMS, 250)
    assert draws.weights.shape == (len(ITEMS), 251)
    assert (draws.weights[:, 0] == 1).all()
    assert (draws.weights.sum(0) == len(ITEMS)).all()


def test_items_are_drawn_as_a_multinomial():
    draws = Resampling.of("probe", ITEMS, 20_000).weights[:, 1:]
    n = len(ITEMS)
    assert np.abs(draws.mean(1) - 1).max() < 5 * np.sqrt((1 - 1 / n) / 20_000)
    assert np.cov(draws) == pytest.approx(np.eye(n) - 1 / n, abs=0.06)


def test_probes_are_drawn_independently():
    one, other = (Resampling.of(probe, ITEMS, 4000).weights[:, 1:] for probe in ("one", "other"))
    values = np.linspace(-1, 1, len(ITEMS))
    assert abs(np.corrcoef(values @ one, values @ other)[0, 1]) < 5 / np.sqrt(4000)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 37, 100, 101])
def test_folds_are_balanced_and_hold_every_item_once(n):
    draws = Resampling.of("probe", [f"q{number}" for number in range(n)], 3)
    sizes = [fold.stop - fold.start for fold in draws.folds]
    assert len(sizes) == FOLDS
    assert max(sizes) - min(sizes) <= 1
    assert [row for fold in draws.folds for row in range(fold.start, fold.stop)] == list(range(n))
    assert sorted(draws.order) == list(range(n))


def test_fold_sums_are_sums_over_the_folds():
    rng = np.random.default_rng(0)
    draws, values = Resampling.of("probe", ITEMS, 10), rng.normal(size=(3, len(ITEMS)))
    sums = draws.fold_sums(values)
    assert sums.shape == (3, FOLDS, 11)
    for number, fold in enumerate(draws.folds):
        for replicate in range(11):
            wanted = sum(draws.weights[i, replicate] * values[:, i] for i in range(fold.start, fold.stop)) / len(ITEMS)
            assert sums[:, number, replicate] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("items", "said"), [([], "0 items"), (["a", "b", "a"], "3 items, of which 2")])
def test_no_items_or_one_twice_is_refused(items, said):
    with pytest.raises(ValueError, match=said):
        Resampling.of("probe", items)
