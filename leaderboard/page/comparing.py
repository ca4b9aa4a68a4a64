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

    By number there are the entries' estimates, the values of their runs, and the covariances over drawn items of every
    two entries, from which the error of a difference over items follows.
    """
    entries = [entry for entry in ranking.entries if entry.reason is None and entry.replicated][:MOST]
    if len(entries) < 2:
        return None
    numbers: list[dict[str, Any]] = []
    for name, label in NUMBERS.items():
        found = [entry.replicated[name] for entry in entries]
        covariance = np.cov(np.stack([one.replicates[1:] for one in found]))
        numbers.append(
            {
                "label": label,
                "estimates": [_short(one.estimate) for one in found],
                "runs": [[_short(value) for value in one.runs.values()] for one in found],
                "covariance": [[_short(value) for value in row[: index + 1]] for index, row in enumerate(covariance)],
            }
        )
    return {
        "names": [entry.label for entry in entries],
        "seeds": [list(entry.replicated["score"].runs) for entry in entries],
        "numbers": numbers,
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
