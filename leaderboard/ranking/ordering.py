"""The order of a board: utility first, then the score; shared ranks, and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from leaderboard.ranking.entry import Entry, Numbers, little_forgotten
from leaderboard.ranking.number import Number


def ordered(entries: Iterable[Entry], floor: float, *, matched: bool = False) -> list[Entry]:
    """The entries with their ranks: those that keep utility, then those below the floor, then those without a score.

    Args:
        floor: utility that an entry has to keep, a share of the target's.
        matched: order by the numbers at matched utility, where all keep it.
    """

    def shown(entry: Entry) -> Numbers | None:
        return entry.matched if matched else entry

    entries = sorted(map(_at_matched_utility, entries) if matched else entries, key=lambda entry: entry.entry)
    scored = [entry for entry in entries if entry.reason is None]
    scored.sort(key=lambda entry: -shown(entry).score.value)
    low = {entry.entry for entry in scored if not matched and entry.utility.value < floor}
    front = _pareto_front({entry.entry: _point(shown(entry)) for entry in scored})
    above = [entry for entry in scored if entry.entry not in low]
    below = [entry for entry in scored if entry.entry in low]
    places = [
        *_places([shown(entry).score for entry in above], start=1),
        *_places([shown(entry).score for entry in below], start=len(above) + 1),
    ]
    ranked = [
        replace(entry, rank=place, below_floor=entry.entry in low, pareto=entry.entry in front)
        for entry, place in zip([*above, *below], places, strict=True)
    ]
    unranked = [entry for entry in entries if entry.reason is not None]
    unranked.sort(key=lambda entry: -((shown(entry) or entry).score.value or 0.0))
    return ranked + unranked


def _at_matched_utility(entry: Entry) -> Entry:
    """An entry with reason and `did_not_forget` of its numbers at matched utility."""
    if entry.matched is None:
        return replace(entry, reason=entry.reason or "not measured at matched utility", did_not_forget=False)
    forgetting = entry.matched.forgetting
    return replace(entry, reason=entry.matched.reason, did_not_forget=little_forgotten(forgetting))


def _point(numbers: Numbers) -> tuple[float, float, float]:
    return numbers.forgetting.value, numbers.robustness.value, numbers.utility.value


def _places(scores: Sequence[Number], start: int) -> Iterable[int]:
    """Ranks of a sorted list. An entry shares its leader's rank while their 95 % intervals over examples overlap.

    The leader is the first entry of the rank, not the previous one: a chain of overlaps does not make one big tie.
    A new rank is the entry's position, as in sports (1, 1, 3).
    """
    leader: Number | None = None
    place = start
    for position, score in enumerate(scores, start):
        if leader is None or score.value + score.margin < leader.value - leader.margin:
            leader, place = score, position
        yield place


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
