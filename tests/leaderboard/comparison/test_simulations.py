"""How often the comparison is wrong, and how often it finds what is there: 4,000 draws a case.

`python -m benchmarks.simulations` prints many more cases.
"""

from __future__ import annotations

import pytest

from tests.leaderboard.comparison.simulation import HEADLINES, Case, simulated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DRAWS = 4000
CASES = (
    Case(("one", "tied"), (0.0, 0.0), 3, paired=True),
    Case(("one", "one"), (0.0, 0.0), 10, paired=True),
    Case(("one", "tied"), (0.1, 0.1), 2, paired=True),
    Case(("one", "tied"), (0.1, 0.1), 5, paired=True),
    Case(("tied", "tied"), (0.03, 0.1), 5, paired=False),
    Case(("clipped", "clipped"), (0.1, 0.0), 3, paired=True),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_differences_that_are_not_there_are_seen_rarely_and_intervals_hold_the_truth(case):
    found = simulated(case, DRAWS)
    for name in HEADLINES:
        assert found.false(name) <= 0.06, f"{name}: {found.false(name):.3f} told apart"
        assert found.coverage(name) >= 0.92, f"{name}: {found.coverage(name):.3f} covered"


@pytest.mark.parametrize("deviation", [0.0, 0.05, 0.15])
def test_power_is_close_to_that_of_the_own_deviations_test(deviation):
    case = Case(("one", "one"), (deviation, deviation), 5, paired=True)
    errors = simulated(case, 1000)
    for name in ("forgetting", "robustness"):
        gap = 4 * errors.spread_of_difference(name)
        found = simulated(Case(case.kinds, case.deviations, case.runs, paired=True, gap=gap), DRAWS // 2, seed=1)
        assert found.power(name) >= 0.85 * found.power_of_satterthwaite(name)
        assert found.power(name) >= 0.8


def test_the_standard_error_over_items_is_the_right_one():
    # Without run noise the difference of two entries varies over worlds by their items alone.
    for kind, low, high in (("one", 0.9, 1.15), ("tied", 0.9, 1.25)):
        found = simulated(Case((kind, kind), (0.0, 0.0), 5, paired=True), DRAWS // 2)
        for name in ("forgetting", "robustness", "utility"):
            assert low <= found.item_error(name) / found.spread_of_difference(name) <= high, (kind, name)
