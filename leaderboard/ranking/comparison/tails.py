"""How likely a sum of a normal and several Student's t is to be far from 0, for any number of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import gammaincinv, ndtr

from leaderboard.ranking.comparison.resampling import Array

NODES = 96
"""Nodes of each term's variance."""
BINS_PER_E = 64
"""Sums of variances this close, as a share of a factor of e, become one with their mean."""


def tail(size: float, error: float, scales: Sequence[float], df: Sequence[int]) -> float:
    """P(|N(0, error^2) + sum of scale t(df)| >= size): above 1e-4 to a share of 1e-4, small values to a fifth.

    Given its variance df / chi^2(df), a Student's t is normal, and so is the sum. So this is the mean of a normal's
    tail over the sum of the variances, whose distribution is made term by term.
    """
    variances, weights = np.array([error**2]), np.array([1.0])
    for scale, freedom in zip(scales, df, strict=True):
        nodes, shares = _variances(freedom)
        sums = np.add.outer(variances, scale**2 * nodes).ravel()
        variances, weights = _merged(sums, np.multiply.outer(weights, shares).ravel())
    return float(min(1.0, weights @ (2 * ndtr(-size / np.sqrt(variances)))))


def _merged(variances: Array, weights: Array) -> tuple[Array, Array]:
    """Fewer nodes with the same sum and the same mean."""
    place = np.floor(np.log(variances) * BINS_PER_E).astype(np.int64)
    place -= place.min()
    weight: Array = np.bincount(place, weights)  # type: ignore[assignment]  # weights given, it returns floats
    mean = np.bincount(place, weights * variances)
    there = weight > 0
    return mean[there] / weight[there], weight[there]


@cache
def _variances(df: int) -> tuple[Array, Array]:
    """Nodes and weights for means over df / chi^2(df): Gauss-Legendre over the quantiles, denser at both ends."""
    v, w = np.polynomial.legendre.leggauss(NODES)
    v, w = (v + 1) / 2, w / 2
    # The smallest chi^2 make the heaviest tails: u = 3v^2 - 2v^3, twice over, is flat enough at 0 for p below 1e-8.
    u, slope = v, w
    for _ in range(2):
        u, slope = 3 * u**2 - 2 * u**3, slope * 6 * u * (1 - u)
    return df / (2 * gammaincinv(df / 2, np.minimum(u, 1 - 2**-53))), slope
