"""Numbers at matched utility, read along the weights between the target and the unlearned model.

theta(w) = target + w (unlearned - target) is measured at several mixing weights w, the ends among them. Between
neighbours every number is a straight line in w. It is read at the largest w at which utility is at the floor: at w = 1,
as it is, where the unlearned model keeps the floor. All replicates of the questions are read in this way, each at the w
where its own utility crosses, so an interval has the luck of where that is.

The barrier says how straight the way is: the largest amount by which utility falls below the straight line between the
ends (linear mode connectivity, arXiv 1912.05671; the chord as in arXiv 2110.06296). docs/statistics.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
class Reading:
    """The same in every replicate: arrays of (1 + replicates,), the estimate first.

    Attributes:
        replicates: of the headlines; None where one of them is not known.
    """

    replicates: Replicates | None
    weight: Array
    barrier: Array


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
        known: all headlines by mixing weight, at those that were attacked; none where one is not known.

    Raises:
        Unread: the weights beside the estimate's crossing were not attacked.
    """
    weights, attacked = sorted(utility), sorted(known)
    curve = np.stack([utility[weight] for weight in weights])
    at = crossing(weights, curve, floor)
    if not known:
        return Reading(None, at, barrier(weights, curve))
    for weight in bracket(weights, float(at[0])):
        if weight not in known:
            raise Unread(f"{share_text(weight)} were not measured under every attack, with an answer to each question")

    def along(of: Callable[[Replicates], Array]) -> Array:
        return between(attacked, np.stack([of(known[weight]) for weight in attacked]), at)

    def attack_numbers(name: str) -> dict[str, Array]:
        some = [getattr(known[weight], name) for weight in attacked]
        return {key: along(lambda one, key=key: getattr(one, name)[key]) for key in _shared(some)}

    curves = {
        attack: {point: along(lambda one, a=attack, p=point: one.curves[a][p]) for point in _shared(of_attack)}
        for attack in _shared([one.curves for one in known.values()])
        if (of_attack := [one.curves[attack] for one in known.values()])
    }
    forgetting, robustness = along(lambda one: one.forgetting), along(lambda one: one.robustness)
    left = np.where(curve[-1] >= floor - ROUNDING, curve[-1], floor)
    with np.errstate(divide="ignore"):
        score = 3 / (1 / forgetting + 1 / robustness + 1 / left)
    first = np.array([at[0]])
    worst = {
        attack: float(between(attacked, np.array([[known[weight].worst[attack]] for weight in attacked]), first)[0])
        for attack in _shared([one.worst for one in known.values()])
    }
    replicates = replace(
        known[attacked[-1]],
        per_item=along(lambda one: one.per_item) if all(one.per_item is not None for one in known.values()) else None,
        forgetting=forgetting,
        robustness=robustness,
        robustness_harmonic=along(lambda one: one.robustness_harmonic),
        utility=left,
        score=score,
        recovery=attack_numbers("recovery"),
        curves=curves,
        areas=attack_numbers("areas"),
        worst=worst,
        cells=None,
    )
    return Reading(replicates, at, barrier(weights, curve))


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
        return one if at == 1 else replace(one, **_of_score(one, _at_floor(one.utility, floor)))
    [(high, other)] = rest
    share = (at - low) / (high - low)
    texts = share_text(low), share_text(high)

    def both(first: Estimate, second: Estimate) -> Estimate:
        return _mean(first, second, share, texts)

    def by_attack(name: str) -> dict[str, Estimate]:
        mine, theirs = getattr(one, name), getattr(other, name)
        return {attack: both(mine[attack], theirs[attack]) for attack in _shared([mine, theirs])}

    curves = {
        attack: {
            point: both(one.curves[attack][point], other.curves[attack][point])
            for point in _shared([one.curves[attack], other.curves[attack]])
        }
        for attack in _shared([one.curves, other.curves])
    }
    read = Headlines(
        both(one.forgetting, other.forgetting),
        both(one.robustness, other.robustness),
        both(one.robustness_harmonic, other.robustness_harmonic),
        one.utility,
        one.score,
        by_attack("recovery"),
        curves,
        by_attack("areas"),
        {**other.failed, **one.failed},
    )
    return replace(read, **_of_score(read, _at_floor(one.utility, floor)))


def _at_floor(utility: Estimate, floor: float) -> Estimate:
    return Estimate(floor, 0.0, utility.n)


def _of_score(read: Headlines, utility: Estimate) -> dict[str, Estimate]:
    return {"utility": utility, "score": harmonic_mean(read.forgetting, read.robustness, utility)}


def _mean(one: Estimate, other: Estimate, share: float, texts: tuple[str, str]) -> Estimate:
    """A number between two; the errors are added, since both answer the same questions."""
    for found, text in zip((one, other), texts, strict=True):
        if found.value is None:
            where = text if one.reason != other.reason else "both weights beside the crossing"
            return Estimate.null(f"{found.reason} ({where})")
    value = (1 - share) * one.value + share * other.value
    return Estimate(value, (1 - share) * one.error + share * other.error, min(one.n, other.n))


def _shared(some: Sequence[Iterable]) -> list:
    """The keys that all have, in the order of the first."""
    first, *others = some
    return [key for key in first if all(key in other for other in others)]
