"""The headlines of a trial in every replicate, against a loop in plain Python that follows the definition."""

from __future__ import annotations

import itertools
import random
import statistics

import numpy as np
import pytest

from leaderboard.ranking.comparison import Cell, Cells, Resampling, Units, replicate
from leaderboard.ranking.comparison.crossfit import MOVED, Replicates
from tasks.scoring.estimate import Estimate
from tasks.scoring.headline import area

REPLICATES = 40


def near(wanted: float, column: int):
    """The estimate is in double precision, replicates are in single precision."""
    return pytest.approx(wanted, abs=1e-6 if column else 1e-12)


class Asked:
    """A trial's answers to the items of some metrics, and how far apart the anchors are."""

    def __init__(self, cells, sizes, seed, names="probe"):
        rng = random.Random(seed)
        self.draws = [
            Resampling.of(f"{names} {probe}", [f"q{number}" for number in range(size)], REPLICATES)
            for probe, size in enumerate(sizes)
        ]
        self.distance = [[rng.gauss(0.8, 0.3) for _ in range(size)] for size in sizes]
        self.excess = {cell: [rng.gauss(0.35, 0.4) for _ in range(sizes[cell.probe])] for cell in cells}

    def cells(self) -> Cells:
        units = Units.of([(draws, np.array(d)) for draws, d in zip(self.draws, self.distance, strict=True)])
        return Cells.of(units, {cell: np.array(values) for cell, values in self.excess.items()})

    def share(self, cell, column, folds):
        """A cell's share over the items of some folds."""
        draws = self.draws[cell.probe]
        rows = [row for fold in folds for row in range(draws.folds[fold].start, draws.folds[fold].stop)]
        weights = [float(draws.weights[row, column]) for row in rows]
        above = sum(w * self.excess[cell][row] for w, row in zip(weights, rows, strict=True))
        below = sum(w * self.distance[cell.probe][row] for w, row in zip(weights, rows, strict=True))
        return above / len(draws.order), below / len(draws.order)

    def chosen(self, cells, column, fold, better):
        """The best cell on the other folds, where shares move by a part of what the draw says."""
        others = [other for other in range(5) if other != fold]

        def by(cell):
            (a, b), (drawn_a, drawn_b) = self.share(cell, 0, others), self.share(cell, column, others)
            sample, drawn = (above / below if below else 0.0 for above, below in ((a, b), (drawn_a, drawn_b)))
            return sample + MOVED * (drawn - sample)

        return better(cells, key=by)

    def extreme(self, cells, column, better=max):
        read = [self.share(self.chosen(cells, column, fold, better), column, [fold]) for fold in range(5)]
        above, below = sum(a for a, _ in read), sum(b for _, b in read)
        return above / below if below else 0.0


def clip(value):
    return min(1.0, max(0.0, value))


def harmonic(terms):
    return 0.0 if min(terms) == 0 else statistics.harmonic_mean(terms)


POINTS = {"none": (0,), "rtn": (0,), "relearn": (4, 8, 20), "prefill": (0,)}
KNOWN = [Cell(attack, point, probe) for attack, points in POINTS.items() for point in points for probe in range(3)]
USEFUL = [Cell("none", 0, probe) for probe in range(2)]


def by_definition(known: Asked, useful: Asked, column: int) -> dict[str, object]:
    cells = list(known.excess)
    recovery = {a: known.extreme([c for c in cells if c.attack == a], column) for a in POINTS}
    forgetting = 1 - clip(recovery["none"])
    robustness = min(1 - clip(known.extreme(cells, column)), forgetting)
    utility = clip(useful.extreme(list(useful.excess), column, min))
    curve = {
        point: known.extreme([c for c in cells if (c.attack, c.point) == ("relearn", point)], column)
        for point in POINTS["relearn"]
    }
    return {
        "forgetting": forgetting,
        "robustness": robustness,
        "robustness_harmonic": harmonic([1 - clip(value) for value in recovery.values()]),
        "utility": utility,
        "score": harmonic([forgetting, robustness, utility]),
        "recovery": recovery,
        "curve": {0: recovery["none"], **curve},
    }


@pytest.mark.parametrize("seed", range(5))
def test_replicates_are_what_a_plain_loop_gives(seed):
    known, useful = Asked(KNOWN, (13, 5, 8), seed), Asked(USEFUL, (9, 7), seed + 100, "useful")
    found = replicate(known.cells(), useful.cells())
    for column in range(REPLICATES + 1):
        wanted = by_definition(known, useful, column)
        for name in ("forgetting", "robustness", "robustness_harmonic", "utility", "score"):
            assert getattr(found, name)[column] == near(wanted[name], column), (name, column)
        for attack, value in wanted["recovery"].items():
            assert found.recovery[attack][column] == near(value, column)
        for point, value in wanted["curve"].items():
            assert found.curves["relearn"][point][column] == near(value, column)
        curve = {point: Estimate(value, None, 1) for point, value in wanted["curve"].items()}
        assert found.areas["relearn"][column] == near(area(curve).value, column)
    assert found.curves.keys() == {"relearn"}


def test_plain_numbers_choose_the_worst_on_the_items_that_they_are_read_on():
    known, useful = Asked(KNOWN, (13, 5, 8), 4), Asked(USEFUL, (9, 7), 104, "useful")
    plain = replicate(known.cells(), useful.cells()).plain

    def shares(asked: Asked, column: int, attack: str | None = None) -> list[float]:
        pairs = [asked.share(c, column, range(5)) for c in asked.excess if attack in (None, c.attack)]
        return [above / below for above, below in pairs]

    for column in range(REPLICATES + 1):
        wanted = [1 - clip(max(shares(known, column, "none"))), 1 - clip(max(shares(known, column)))]
        wanted.append(clip(min(shares(useful, column))))
        for name, number in zip(("forgetting", "robustness", "utility"), wanted, strict=True):
            assert plain[name][column] == near(number, column)
        assert plain["score"][column] == pytest.approx(harmonic(wanted), rel=1e-4)


def test_how_often_an_attack_is_the_worst_is_counted_over_folds_and_replicates():
    known, useful = Asked(KNOWN, (13, 5, 8), 1), Asked(USEFUL, (9, 7), 101, "useful")
    found = replicate(known.cells(), useful.cells())
    chosen = [
        known.chosen(KNOWN, column, fold, max).attack
        for column, fold in itertools.product(range(REPLICATES + 1), range(5))
    ]
    assert found.worst == pytest.approx({attack: chosen.count(attack) / len(chosen) for attack in POINTS})
    assert sum(found.worst.values()) == pytest.approx(1)


@pytest.mark.parametrize("cells", [255, 256, 257, 300])
def test_many_cells_have_places_of_their_own(cells):
    # Each cell is the largest on no fold but the last, which is far ahead on all of them.
    names = [f"attack {number:03}" for number in range(cells)]
    draws = Resampling.of("probe", [f"q{number}" for number in range(10)], 5)
    units = Units.of([(draws, np.ones(10))])
    excess = {Cell(name, 0, 0): np.full(10, 0.5 if name == names[-1] else 0.1) for name in names}
    found = replicate(
        Cells.of(units, excess | {Cell("none", 0, 0): np.zeros(10)}), Cells.of(units, {Cell("none", 0, 0): np.ones(10)})
    )
    assert found.robustness == pytest.approx(0.5)
    assert found.worst[names[-1]] == 1.0


def test_the_strongest_of_equal_attacks_is_not_the_luckiest():
    rng = np.random.default_rng(0)
    items = [f"q{number}" for number in range(50)]
    draws = Resampling.of("probe", items, 5)
    units, attacks = Units.of([(draws, np.ones(50))]), ["none", *(f"attack {number}" for number in range(9))]
    useful = Cells.of(units, {Cell("none", 0, 0): np.ones(50)})
    cross_fitted, plain = [], []
    for _ in range(400):
        answers = {Cell(attack, 0, 0): rng.normal(0.5 * (attack != "none"), 0.4, 50) for attack in attacks}
        found = replicate(Cells.of(units, answers), useful)
        cross_fitted.append(found.robustness[0])
        plain.append(found.plain["robustness"][0])
        assert plain[-1] == pytest.approx(1 - max(values.mean() for values in answers.values()))
    error = 0.4 / np.sqrt(50 * 400)
    assert abs(np.mean(cross_fitted) - 0.5) < 5 * error
    assert np.mean(plain) < 0.5 - 20 * error


def same(one: Replicates, other: Replicates) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("forgetting", "robustness", "robustness_harmonic", "utility", "score")
    )


def test_the_order_in_which_cells_are_given_changes_no_bit():
    known, useful = Asked(KNOWN, (13, 5, 8), 2), Asked(USEFUL, (9, 7), 102, "useful")
    shuffled = Asked(KNOWN, (13, 5, 8), 2)
    shuffled.excess = dict(random.Random(0).sample(sorted(known.excess.items(), key=repr), len(known.excess)))
    assert same(replicate(known.cells(), useful.cells()), replicate(shuffled.cells(), useful.cells()))


def test_where_the_anchors_do_not_differ_a_share_is_zero():
    draws = Resampling.of("probe", [f"q{number}" for number in range(10)], 20)
    units = Units.of([(draws, np.zeros(10))])
    cells = Cells.of(units, {Cell("none", 0, 0): np.ones(10), Cell("rtn", 0, 0): np.full(10, 2.0)})
    found = replicate(cells, Cells.of(units, {Cell("none", 0, 0): np.ones(10)}))
    assert (found.forgetting == 1).all()
    assert (found.utility == 0).all()
    assert (found.score == 0).all()


@pytest.mark.parametrize("items", [1, 2, 3, 4])
def test_fewer_items_than_folds_are_read_all_the_same(items):
    known, useful = Asked(KNOWN, (items, items, items), 3), Asked(USEFUL, (items, items), 103, "useful")
    found = replicate(known.cells(), useful.cells())
    for column in range(REPLICATES + 1):
        wanted = by_definition(known, useful, column)
        assert found.score[column] == pytest.approx(wanted["score"], abs=1e-6)
    assert np.isfinite(found.score).all()
