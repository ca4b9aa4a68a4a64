"""Retention matching (UWC, Wang et al. 2024, arXiv 2406.09179), so that a damaged model cannot win by having forgotten
everything: which weights between the target and the unlearned model are measured.

Utility is measured at quarters of the way, and three times at the middle of the piece in which it crosses the floor.
That is cheap. Attacks are not, so they are made only where a number may be read (`leaderboard.ranking.mixing_curve`):
on the weights beside the crossing, wherever it is with other questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.mixing_curve import crossing
from suite.config.canonical import digest
from suite.models.checkpoints import KeyedCheckpoint, interpolated
from suite.training.anchors import Anchors

QUARTERS = (0.25, 0.5, 0.75)
"""Mixing weights at which utility is always measured, beside both ends."""
HALVINGS = 3
"""Most times that the piece with the crossing is halved: to 1/32 of the way, where a straight line is close enough."""
LUCK = 0.99
"""Share of other draws of the questions whose crossing lies between attacked weights."""


def next_weight(utility: Mapping[float, Array], floor: float) -> float | None:
    """The mixing weight to measure utility at next; None where the pieces are short enough.

    A piece that is shorter than the crossing's spread over draws of the questions need not be halved.

    Args:
        utility: U by mixing weight, 0 and 1 among them; the estimate first, then with other questions.
    """
    weights = sorted(utility)
    at = crossing(weights, np.stack([utility[weight] for weight in weights]), floor)
    low, high = _luck(at)
    if low == 1:
        return None
    place = next(place for place in range(1, len(weights)) if weights[place] >= at[0])
    below, above = weights[place - 1], weights[place]
    finest = 0.5 ** (HALVINGS + 2)
    return None if above - below <= max(high - low, finest) else (below + above) / 2


def weights_to_attack(utility: Mapping[float, Array], plain: float, floor: float) -> list[float]:
    """The mixing weights between which the crossing lies with nearly all draws of the questions; without the ends.

    Args:
        utility: as in `next_weight`.
        plain: the crossing of the plain utility, which counts as one more draw.
    """
    weights = sorted(utility)
    at = crossing(weights, np.stack([utility[weight] for weight in weights]), floor)
    low, high = _luck(np.append(at, plain))
    low, high = min(low, at[0], plain), max(high, at[0], plain)
    first = max(weight for weight in weights if weight <= low)
    last = min(weight for weight in weights if weight >= high)
    return [weight for weight in weights if first <= weight <= last and 0 < weight < 1]


def mixed_weights(share: float, unlearned: KeyedCheckpoint, anchors: Anchors) -> KeyedCheckpoint:
    """The weights that contain this share of the unlearned weights, and otherwise the target's.

    At a share of 0 or 1 they are the target or the unlearned model itself, whose samples exist anyway.
    """
    target = anchors.target
    if share in (0.0, 1.0):
        return unlearned if share else target
    key = digest({"unlearned": [unlearned.key, unlearned.part], "target": target.key, "share": share})
    return KeyedCheckpoint(interpolated(target.checkpoint, unlearned.checkpoint, share), key)


def _luck(at: Array | Sequence[float]) -> tuple[float, float]:
    """Between which mixing weights the crossing lies with nearly all draws of the questions."""
    low, high = np.quantile(at, [(1 - LUCK) / 2, (1 + LUCK) / 2], method="closest_observation")
    return float(low), float(high)
