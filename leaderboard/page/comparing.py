"""What a page needs to compare any two of its entries by itself (`compare.js`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from leaderboard.ranking import compare
from leaderboard.ranking.rank import Ranking

MOST = 60
"""Entries that can be picked: the page has a number for every two of them."""
NUMBERS = {name: label for name, label in compare.NUMBERS.items() if name != "robustness_harmonic"}


def comparable(ranking: Ranking) -> dict[str, Any] | None:
    """The entries that can be compared, as plain values; None with fewer than two.

    By number there are the entries' estimates, the values of their runs and of the seeds of further levels where there
    are any, and the covariances over drawn items of every two entries, from which the error of a difference over items
    follows.
    """
    known = [(entry.label, entry.replicated) for entry in ranking.entries if entry.reason is None and entry.replicated]
    entries = known[:MOST]
    if len(entries) < 2:
        return None
    numbers: list[dict[str, Any]] = []
    for name, label in NUMBERS.items():
        found = [replicated[name] for _, replicated in entries]
        covariance = np.cov(np.stack([one.replicates[1:] for one in found]))
        levels = [
            {level: {seed: _short(value) for seed, value in seeds.items()} for level, seeds in one.levels.items()}
            for one in found
        ]
        numbers.append(
            {
                "label": label,
                **({"levels": levels} if any(levels) else {}),
                "estimates": [_short(one.estimate) for one in found],
                "runs": [[_short(value) for value in one.runs.values()] for one in found],
                "covariance": [[_short(value) for value in row[: index + 1]] for index, row in enumerate(covariance)],
            }
        )
    return {
        "names": [label for label, _ in entries],
        "seeds": [list(replicated["score"].runs) for _, replicated in entries],
        "numbers": numbers,
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
