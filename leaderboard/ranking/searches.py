"""How much tuning stands behind an entry: the search that it comes from, and what it cost."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leaderboard.ranking.specs import settings_of

SHOWN = (1, 4, 16, 64, 256)
"""Numbers of trials whose expected best is given."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search or a grid, as far as its trials are on the board.

    Attributes:
        sampler: `tpe`, `random` or `grid`.
        space: canonical JSON of what was searched.
        trials: trials on the board, and `on_dev` those that were measured on dev.
        loss_evaluations: losses and gradients computed by all of its trials.
        entries: those on this table that come from it.
        expected_best: by number of trials, the score on dev that the best of so many has on average, drawn from those
            that were measured.
    """

    id: str
    sampler: str
    space: str
    trials: int
    on_dev: int
    loss_evaluations: int
    entries: tuple[str, ...]
    expected_best: Mapping[int, float]


def searches(
    trials: Iterable[Mapping[str, Any]], shown: Iterable[str], dev_scores: Mapping[str, float]
) -> tuple[Search, ...]:
    """The searches behind the entries of a table.

    Args:
        trials: rows of the table `trials`.
        shown: the entries.
        dev_scores: by trial its score on dev.
    """
    by_search: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in trials:
        if found := search_id(row):
            by_search[found].append(row)
    entries = set(shown)
    return tuple(
        _search(name, rows, entries, dev_scores)
        for name, rows in sorted(by_search.items())
        if entries & {row["entry"] for row in rows}
    )


def search_id(row: Mapping[str, Any]) -> str | None:
    """The id of the search that a trial comes from; None where its row declares none, or is damaged."""
    found = settings_of(row["search"]).get("id") if row.get("search") else None
    return found if isinstance(found, str) and found else None


def _search(name: str, rows: Sequence[Mapping[str, Any]], entries: set[str], dev_scores: Mapping[str, float]) -> Search:
    first = min(rows, key=lambda row: row["trial"])
    declared = json.loads(first["search"])
    scores = [dev_scores[row["trial"]] for row in rows if row["trial"] in dev_scores]
    return Search(
        name,
        str(declared.get("sampler", "unknown")),
        json.dumps({key: declared[key] for key in ("space", "grid", "cases") if declared.get(key)}, sort_keys=True),
        len(rows),
        len(scores),
        sum((row["value_calls"] or 0) + (row["gradient_calls"] or 0) for row in rows),
        tuple(sorted(entries & {row["entry"] for row in rows})),
        {k: expected_best(scores, k) for k in SHOWN if k <= len(scores)} if len(scores) > 1 else {},
    )


def expected_best(scores: Sequence[float], k: int) -> float:
    """The mean over all ways to draw k of n scores of the largest one drawn: without replacement, so without luck.

    Sum over i of x_(i) C(i - 1, k - 1) / C(n, k) (Dodge et al. 2019, arXiv 1909.03004, without replacement).
    """
    n = len(scores)
    ways = math.comb(n, k)
    return math.fsum(x * (math.comb(i, k - 1) / ways) for i, x in enumerate(sorted(scores)))


def search_text(search: Search) -> str:
    """`search 1a2b3c4d (tpe): 24 trials, 24 on dev, 3,840 loss evaluations; expected best on dev of 1: 0.41, ...`."""
    best = ", ".join(f"of {k}: {value:.2f}" for k, value in search.expected_best.items())
    kind = "grid" if search.sampler == "grid" else "search"
    sampler = "" if search.sampler == "grid" else f" ({search.sampler})"
    counts = f"{search.trials} trials, {search.on_dev} on dev, {search.loss_evaluations:,} loss evaluations"
    return f"{kind} {search.id[:8]}{sampler}: {counts}" + (f"; expected best on dev {best}" if best else "")
