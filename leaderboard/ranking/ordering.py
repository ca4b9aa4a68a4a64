"""The order of a board: utility first, then the score; ranks from significant differences, and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from leaderboard.ranking.comparison import Verdicts
from leaderboard.ranking.entry import Entry, Numbers, little_forgotten

FEWEST_RUNS = 3
"""Fewest runs for a rank: with two, Student's t makes an interval over runs so wide that nothing can be told."""


def ordered(entries: Iterable[Entry], floor: float, *, matched: bool = False) -> tuple[list[Entry], Verdicts]:
    """The entries with their ranks: those that keep utility, then those below the floor, then those without a rank.

    Args:
        floor: utility that an entry has to keep, a share of the target's.
        matched: order by the numbers at matched utility, where all keep it.

    Returns:
        the entries, and the comparisons of those that keep utility.
    """

    def shown(entry: Entry) -> Numbers | None:
        return entry.matched if matched else entry

    def by_score(entry: Entry) -> float:
        value = (shown(entry) or entry).score.value
        return 1.0 if value is None else -value

    entries = sorted(map(_at_matched_utility, entries) if matched else entries, key=lambda entry: entry.entry)
    scored = sorted((entry for entry in entries if entry.reason is None), key=by_score)
    numbers = {entry.entry: found for entry in scored if (found := shown(entry))}
    points = {name: point for name, found in numbers.items() if (point := found.point)}
    low = {name for name, (_, _, utility) in points.items() if not matched and utility < floor}
    front = _pareto_front(points)
    provisional = {name: why for name, found in numbers.items() if (why := not_ranked(found))}
    scores = {name: found.replicated["score"] for name, found in numbers.items() if found.replicated}
    tiers = [
        [entry for entry in scored if entry.entry not in provisional and (entry.entry in low) is below]
        for below in (False, True)
    ]
    ranks: dict[str, int] = {}
    verdicts = [Verdicts.of({entry.entry: scores[entry.entry] for entry in tier}) for tier in tiers]
    for verdict, before in zip(verdicts, (0, len(tiers[0])), strict=True):
        ranks |= {name: before + rank for name, rank in verdict.ranks().items()}
    placed = [*tiers[0], *tiers[1], *(entry for entry in scored if entry.entry in provisional)]
    ranked = [
        replace(
            entry,
            rank=ranks.get(entry.entry),
            provisional=provisional.get(entry.entry),
            below_floor=entry.entry in low,
            pareto=entry.entry in front,
        )
        for entry in placed
    ]
    unranked = sorted((entry for entry in entries if entry.reason is not None), key=by_score)
    return ranked + unranked, verdicts[0]


def not_ranked(numbers: Numbers) -> str | None:
    """Why an entry with a score has no rank; None where it has one."""
    if numbers.replicated is None:
        return "provisional: the answers to single questions are not on this board, so it cannot be compared"
    runs = len(numbers.replicated["score"].runs)
    if runs < FEWEST_RUNS:
        return f"provisional: {('no', 'one', 'two')[runs]} run{'s' * (runs != 1)}, and a rank takes {FEWEST_RUNS}"
    return None


def _at_matched_utility(entry: Entry) -> Entry:
    """An entry with reason and `did_not_forget` of its numbers at matched utility."""
    if entry.matched is None:
        return replace(entry, reason=entry.reason or "not measured at matched utility", did_not_forget=False)
    forgetting = entry.matched.forgetting
    return replace(entry, reason=entry.matched.reason, did_not_forget=little_forgotten(forgetting))


def _pareto_front(points: Mapping[str, tuple[float, float, float]]) -> set[str]:
    """Entries that no other one dominates: at least as good in F, R and U, and better in one of them."""
    front: dict[str, tuple[float, float, float]] = {}
    # In descending order a point can only be dominated by one before it, and then also by one of the front.
    for name, point in sorted(points.items(), key=lambda item: item[1], reverse=True):
        if not any(_dominates(other, point) for other in front.values()):
            front[name] = point
    return set(front)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
