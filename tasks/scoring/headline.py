"""From measurements to headlines: knowledge, forgetting F, excess recovery, robustness R, utility U and the score.

All are relative to the anchors: the target model is 0 % forgotten, the retrained model (or, without one, chance) is
100 %. Standard errors are propagated to first order, with terms assumed independent. All models get the same examples,
so this is an upper bound for differences where models agree on which examples are hard. The terms of a mean over
attacks, or over the points of one attack, are correlated; their errors are added, which is always an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from tasks.scoring.estimate import Estimate

SMALLEST_GAP = 0.1
"""Smallest distance between the anchors of which a share is meaningful."""
GAP_IN_STDERRS = 4.0
"""The distance must also be this many of its standard errors: with fewer, noise alone moves a share by over 25 %."""


def knowledge(model: Estimate, target: Estimate, retrained: Estimate) -> Estimate:
    """(m - m_retrained) / (m_target - m_retrained): 1 at the target, 0 at the retrained model."""
    if model.value is None:
        return model
    gap = anchor_gap(target, retrained)
    if gap.value is None or retrained.value is None:  # without the anchor there is no gap
        return gap
    share = (model.value - retrained.value) / gap.value
    error = math.hypot(model.error, share * target.error, (1 - share) * retrained.error) / abs(gap.value)
    return Estimate(share, error, model.n)


def excess_recovery(
    attacked: Estimate, attacked_retrained: Estimate, target: Estimate, retrained: Estimate
) -> Estimate:
    """(m_a - m_retrained,a) / (m_target - m_retrained): knowledge that attack a recovers, less what it teaches.

    The zero is the retrained model under the same attack; the unit is the distance between the unattacked anchors.
    """
    return share_of_gap(attacked, attacked_retrained, anchor_gap(target, retrained))


def share_of_gap(attacked: Estimate, attacked_retrained: Estimate, gap: Estimate) -> Estimate:
    """Excess recovery, given the distance between the unattacked anchors (`anchor_gap`)."""
    if attacked.value is None:
        return attacked
    if attacked_retrained.value is None:
        return attacked_retrained
    if gap.value is None:
        return gap
    share = (attacked.value - attacked_retrained.value) / gap.value
    errors = attacked.stderr or 0.0, attacked_retrained.stderr or 0.0, share * (gap.stderr or 0.0)
    return Estimate(share, math.hypot(*errors) / abs(gap.value), attacked.n)


def anchor_gap(target: Estimate, retrained: Estimate) -> Estimate:
    """Distance between the anchors, null where it is too small to serve as a unit."""
    if target.value is None:
        return target
    if retrained.value is None:
        return retrained
    gap, error = target.value - retrained.value, math.hypot(target.error, retrained.error)
    if abs(gap) < max(SMALLEST_GAP, GAP_IN_STDERRS * error):
        return Estimate.null(f"the anchors are too close: {gap:.3f} +- {error:.3f}")
    return Estimate(gap, error, min(target.n, retrained.n))


def largest(terms: Iterable[Estimate]) -> Estimate:
    """The largest term; null if any term is, because the missing one could be the largest."""
    return _extreme(terms, largest=True)


def smallest(terms: Iterable[Estimate]) -> Estimate:
    """The smallest term; null if any term is."""
    return _extreme(terms, largest=False)


def share_lost(recovered: Estimate) -> Estimate:
    """1 - clip(x, 0, 1): forgetting F from knowledge, robustness R from the worst excess recovery."""
    if recovered.value is None:
        return recovered
    return Estimate(1 - _clip(recovered.value), recovered.stderr, recovered.n)


def share_kept(model: Estimate, target: Estimate, chance: float) -> Estimate:
    """clip((u - chance) / (u_target - chance)): utility on one probe."""
    share = knowledge(model, target, Estimate(chance, 0.0, target.n))
    return share if share.value is None else Estimate(_clip(share.value), share.stderr, share.n)


def harmonic_mean(*terms: Estimate, dependent: bool = False) -> Estimate:
    """Harmonic mean of numbers in [0, 1]; 0 when one is 0. The score is that of F, R and U.

    Args:
        dependent: the terms' errors are correlated, as those of one model under several attacks.
    """
    values: list[float] = []
    for term in terms:
        if term.value is None:
            return term
        values.append(term.value)
    if not terms:
        return Estimate.null("nothing was measured")
    n = min(term.n for term in terms)
    if any(value < 1e-300 for value in values):  # the reciprocals of smaller ones overflow
        return Estimate(0.0, 0.0, n)
    harmonic = len(terms) / math.fsum(1 / value for value in values)
    errors = [(harmonic / value) ** 2 / len(terms) * term.error for value, term in zip(values, terms, strict=True)]
    return Estimate(harmonic, math.fsum(errors) if dependent else math.hypot(*errors), n)


def area(curve: Mapping[int, Estimate]) -> Estimate:
    """Mean height of a curve: its area by the trapezoid rule over its length, from the first point to the last.

    For excess recovery over the steps of an attack it is 1 where everything is recovered at once, and 0 where the
    attack never recovers more than it teaches the retrained model. The points' errors are correlated, so they are
    added.
    """
    heights: dict[int, float] = {}
    for point, term in curve.items():
        if term.value is None:
            return term
        heights[point] = term.value
    if len(curve) < 2:
        return Estimate.null("a curve of one point has no area")
    points = sorted(curve)
    length = points[-1] - points[0]
    share = dict.fromkeys(points, 0.0)
    for before, after in pairwise(points):
        share[before] += (after - before) / 2 / length
        share[after] += (after - before) / 2 / length
    value = math.fsum(share[point] * height for point, height in heights.items())
    error = math.fsum(share[point] * term.error for point, term in curve.items())
    return Estimate(value, error, min(term.n for term in curve.values()))


def _extreme(terms: Iterable[Estimate], *, largest: bool) -> Estimate:
    found: tuple[float, Estimate] | None = None
    for term in terms:
        if term.value is None:
            return term
        if found is None or (term.value > found[0] if largest else term.value < found[0]):
            found = term.value, term
    return found[1] if found else Estimate.null("nothing was measured")


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
