"""Numbers at matched utility, read along the weights between the target and the unlearned model.

theta(w) = target + w (unlearned - target) is measured at several mixing weights w, the ends among them. Between
neighbours every number is a straight line in w. It is read at the largest w at which utility is at the floor: at w = 1,
as it is, where the unlearned model keeps the floor. All replicates of the questions are read in this way, each at the w
where its own utility crosses, so an interval has the luck of where that is.

The barrier says how straight the way is: the largest amount by which utility falls below the straight line between the
ends (linear mode connectivity, arXiv 1912.05671; the chord as in arXiv 2110.06296). docs/statistics.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from leaderboard.ranking.comparison import Replicates
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.headlines import Headlines
from tasks.scoring.estimate import Estimate
from tasks.scoring.headline import harmonic_mean

FEWEST = 5
"""Fewest mixing weights between which a number is read, both ends included."""
MOST = 64
"""Most mixing weights of one trial: some hundred kilobytes each are held, and ten are measured."""
ROUNDING = 1e-6
"""Utility that is lower by this is at the floor: replicates are in single precision."""


class Unread(Exception):
    """Nothing can be read at the floor; the message says why. Internal: it becomes the reason of a missing number."""


@dataclass(frozen=True, slots=True)
class PlainReading:
    """A trial's numbers where utility is at the floor, each the plain one of its measurements.

    Attributes:
        weight: share of the unlearned weights there.
        barrier: of utility along the curve.
    """

    headlines: Headlines
    weight: Estimate
    barrier: Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """Where utility is at the floor in every replicate: arrays of (1 + replicates,), the estimate first.

    Attributes:
        weight: share of the unlearned weights there.
        barrier: of utility along the curve.
    """

    weight: Array
    barrier: Array

    @classmethod
    def of(cls, utility: Mapping[float, Array], floor: float) -> Crossing:
        """
        Args:
            utility: U by mixing weight, 0 and 1 among them.
        """
        weights = sorted(utility)
        curve = np.stack([utility[weight] for weight in weights])
        return Crossing(crossing(weights, curve, floor), barrier(weights, curve))


@dataclass(frozen=True, slots=True, eq=False)
class Reading(Crossing):
    """A trial's headlines in every replicate, each where its own utility is at the floor."""

    replicates: Replicates


def crossing(weights: Sequence[float], utility: Array, floor: float) -> Array:
    """The largest mixing weight at which utility is at the floor; 0 where it is nowhere.

    Args:
        weights: ascending.
        utility: (weights, columns); between neighbours it is a straight line.

    Returns:
        (columns,)
    """
    last, above, below = len(weights) - 1, *_sides(utility, floor)
    some = np.arange(utility.shape[1])
    higher, lower = utility[above, some], utility[below, some]
    fall = np.where(above < last, higher - lower, 1.0)
    share = np.clip((higher - floor) / np.where(fall > 0, fall, 1.0), 0.0, 1.0)
    at = np.asarray(weights, dtype=float)
    found = at[above] + np.where(above < last, share, 0.0) * (at[below] - at[above])
    return np.where((utility >= floor - ROUNDING).any(0), found, 0.0)


def between(weights: Sequence[float], values: Array, at: Array) -> Array:
    """Values by linear interpolation, as `numpy.interp`, each column at a place of its own.

    Args:
        weights: ascending. values: (weights, columns). at: (columns,); beyond the ends, the ends' values.
    """
    if len(weights) == 1:
        return values[0].copy()
    places = np.asarray(weights, dtype=float)
    at = np.clip(at, places[0], places[-1])
    left = np.clip(np.searchsorted(places, at, side="right") - 1, 0, len(places) - 2)
    share = (at - places[left]) / (places[left + 1] - places[left])
    some = np.arange(values.shape[1])
    return (1 - share) * values[left, some] + share * values[left + 1, some]


def barrier(weights: Sequence[float], utility: Array) -> Array:
    """How far utility falls below the straight line between its ends, at the weight where the first column falls most.

    Never below 0. The weight is not chosen again in every column: the largest of noisy numbers is too large.

    Args:
        weights: ascending from 0 to 1. utility: (weights, columns).
    """
    at = np.asarray(weights, dtype=float)[:, None]
    below = (1 - at) * utility[0] + at * utility[-1] - utility
    inner = below[1:-1]
    return np.maximum(inner[inner[:, 0].argmax()], 0.0) if len(inner) else np.zeros(utility.shape[1])


def bracket(weights: Sequence[float], at: float) -> list[float]:
    """The neighbours of a mixing weight, or the weight itself where it is one of them."""
    if at in weights:
        return [at]
    return [max(weight for weight in weights if weight < at), min(weight for weight in weights if weight > at)]


def beside(attacked: Sequence[float], utility: Mapping[float, Array], floor: float) -> list[float]:
    """The attacked weights between which the crossing lies in every replicate: numbers are read from no others.

    Args:
        attacked: ascending. utility: U by mixing weight.
    """
    weights = sorted(utility)
    at = crossing(weights, np.stack([utility[weight] for weight in weights]), floor)
    low = max((weight for weight in attacked if weight <= at.min()), default=0.0)
    high = min((weight for weight in attacked if weight >= at.max()), default=1.0)
    return [weight for weight in attacked if low <= weight <= high]


def read_plain(
    utility: Mapping[float, Estimate], headlines: Callable[[float], Headlines], attacks: Iterable[str], floor: float
) -> PlainReading:
    """A trial's numbers where its utility is at the floor.

    Args:
        utility: U by mixing weight, 0 and 1 among them.
        headlines: those of a mixing weight; asked for the neighbours of the crossing alone.
    """
    weights, height = sorted(utility), _barrier(utility)
    try:
        at = plain_crossing(utility, floor)
        found = {weight: headlines(weight) for weight in bracket(weights, at)}
    except Unread as why:
        missing = Estimate.null(f"utility cannot be matched: {why}")
        return PlainReading(Headlines.null(missing, attacks), missing, height)
    return PlainReading(_between_headlines(found, at, floor), Estimate(at, None, 1), height)


def read(utility: Mapping[float, Array], known: Mapping[float, Replicates], floor: float) -> Reading:
    """A trial's numbers in every replicate, each where its own utility is at the floor.

    Args:
        utility: U by mixing weight, 0 and 1 among them.
        known: all headlines by mixing weight, at those that were attacked.

    Raises:
        Unread: the weights beside the estimate's crossing were not attacked.
    """
    weights, attacked = sorted(utility), sorted(known)
    found = Crossing.of(utility, floor)
    at = found.weight
    for weight in bracket(weights, float(at[0])):
        if weight not in known:
            raise Unread(f"{share_text(weight)} were not measured under every attack, with an answer to each question")

    models = [known[weight] for weight in attacked]

    def along(values: Sequence[Array]) -> Array:
        return between(attacked, np.stack(values), at)

    def each(values: Sequence[Mapping[_Key, Array]]) -> dict[_Key, Array]:
        return {key: along([one[key] for one in values]) for key in _shared(values)}

    curves = [one.curves for one in models]
    worst = [one.worst for one in models]
    per_item = [one.per_item for one in models if one.per_item is not None]
    forgetting, robustness = along([one.forgetting for one in models]), along([one.robustness for one in models])
    left = np.where(utility[weights[-1]] >= floor - ROUNDING, utility[weights[-1]], floor)
    with np.errstate(divide="ignore"):
        score = 3 / (1 / forgetting + 1 / robustness + 1 / left)
    first = at[:1]
    replicates = replace(
        models[-1],
        per_item=along(per_item) if len(per_item) == len(models) else None,
        forgetting=forgetting,
        robustness=robustness,
        robustness_harmonic=along([one.robustness_harmonic for one in models]),
        utility=left,
        score=score,
        recovery=each([one.recovery for one in models]),
        curves={attack: each([curve[attack] for curve in curves]) for attack in _shared(curves)},
        areas=each([one.areas for one in models]),
        worst={
            attack: float(between(attacked, np.array([[share[attack]] for share in worst]), first)[0])
            for attack in _shared(worst)
        },
        cells=None,
    )
    return Reading(at, found.barrier, replicates)


def share_text(weight: float) -> str:
    """What the weights at a mixing weight are called in a sentence."""
    if weight in (0.0, 1.0):
        return "the unlearned weights" if weight else "the target's weights"
    return f"the weights with a share of {weight:g}"


def _sides(utility: Array, floor: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """By column the last weight that is at the floor, and the one after it."""
    last = len(utility) - 1
    above = last - (utility >= floor - ROUNDING)[::-1].argmax(0)
    return above, np.minimum(above + 1, last)


def plain_crossing(utility: Mapping[float, Estimate], floor: float) -> float:
    """As `crossing`. A weight without a number stops it only where it might be the one that is looked for.

    Raises:
        Unread: there are too few weights, or too many, or one of these has no number.
    """
    weights = sorted(utility)
    if len(weights) > MOST:
        raise Unread(f"more than {MOST} mixing weights were measured")
    for place in reversed(range(len(weights))):
        found = utility[weights[place]]
        if found.value is None:
            where = "" if weights[place] == 1 else f" of {share_text(weights[place])}"
            raise Unread(f"utility{where} is not known: {found.reason}")
        if found.value >= floor - ROUNDING:
            break
    else:
        raise Unread("the target itself is below the floor")
    if place == len(weights) - 1:
        return 1.0
    if len(weights) < FEWEST:
        raise Unread(f"{len(weights)} mixing weights were measured, both ends included, and it takes {FEWEST}")
    pair = weights[place : place + 2]
    return float(crossing(pair, np.array([[utility[weight].value] for weight in pair]), floor)[0])


def _barrier(utility: Mapping[float, Estimate]) -> Estimate:
    weights = sorted(utility)
    for weight in weights:
        if utility[weight].value is None:
            return Estimate.null(f"utility of {share_text(weight)} is not known: {utility[weight].reason}")
    if not FEWEST <= len(weights) <= MOST:
        return Estimate.null(f"{len(weights)} mixing weights were measured, both ends included, and it takes {FEWEST}")
    values = np.array([[utility[weight].value] for weight in weights])
    return Estimate(float(barrier(weights, values)[0]), None, 1)


def _between_headlines(found: Mapping[float, Headlines], at: float, floor: float) -> Headlines:
    """The headlines between two neighbours, or those of one."""
    (low, one), *rest = sorted(found.items())
    if not rest:
        return one if at == 1 else _with_utility(one, floor)
    [(high, other)] = rest
    share = (at - low) / (high - low)
    texts = share_text(low), share_text(high)

    def both(first: Estimate, second: Estimate) -> Estimate:
        return _mean(first, second, share, texts)

    def each(mine: Mapping[_Key, Estimate], theirs: Mapping[_Key, Estimate]) -> dict[_Key, Estimate]:
        return {key: both(mine[key], theirs[key]) for key in _shared([mine, theirs])}

    read = Headlines(
        both(one.forgetting, other.forgetting),
        both(one.robustness, other.robustness),
        both(one.robustness_harmonic, other.robustness_harmonic),
        one.utility,
        one.score,
        each(one.recovery, other.recovery),
        {attack: each(one.curves[attack], other.curves[attack]) for attack in _shared([one.curves, other.curves])},
        each(one.areas, other.areas),
        {**other.failed, **one.failed},
    )
    return _with_utility(read, floor)


def _with_utility(read: Headlines, floor: float) -> Headlines:
    """The headlines with utility at the floor."""
    utility = Estimate(floor, 0.0, read.utility.n)
    return replace(read, utility=utility, score=harmonic_mean(read.forgetting, read.robustness, utility))


def _mean(one: Estimate, other: Estimate, share: float, texts: tuple[str, str]) -> Estimate:
    """A number between two; the errors are added, since both answer the same questions."""
    if one.value is None or other.value is None:
        missing, where = (one, texts[0]) if one.value is None else (other, texts[1])
        if one.reason == other.reason:
            where = "both weights beside the crossing"
        return Estimate.null(f"{missing.reason} ({where})")
    value = (1 - share) * one.value + share * other.value
    return Estimate(value, (1 - share) * one.error + share * other.error, min(one.n, other.n))


_Key = TypeVar("_Key", bound=Hashable)


def _shared(some: Sequence[Collection[_Key]]) -> list[_Key]:
    """The keys that all have, in the order of the first."""
    first, *others = some
    return [key for key in first if all(key in other for other in others)]
