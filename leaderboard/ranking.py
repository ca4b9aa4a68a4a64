"""Who leads: constraint then rank, in groups that may be compared.

Entries that keep utility U >= floor come first, in order of the score; then those below the floor; then those without
a score, each with its reason. Only trials with the same anchors, task version, data and engine are ranked together:
numbers on other scales are listed as left out, never mixed in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from leaderboard import schema
from leaderboard.entry import Cost, Entry, Number, Seed, Trial, combined
from leaderboard.headlines import Answers, headlines, kept, zero
from leaderboard.labels import labels
from leaderboard.schema import Status
from leaderboard.store import Board, BoardError
from tasks import TASKS, Split, attack_name

__all__ = ["FLOOR", "Cost", "Entry", "Group", "Number", "Ranking", "Seed", "rank"]

FLOOR = 0.9
"""Utility that an entry has to keep: below it, forgetting is cheap."""

_MEASURED = (
    *("trial", "subject", "attack", "point", "probe", "subset", "engine", "metric"),
    *("value", "stderr", "n", "headline", "chance", "reason"),
)

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Group:
    """What trials must have in common to be ranked together; `trials` is how many have it."""

    anchor_ids: str | None
    engine: str | None
    task_version: int | None
    data: str | None
    trials: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The board of one task and split.

    Attributes:
        attacks: attacks of the official set, as they stand in the rows.
        group: what the ranked trials have in common; null when the task has no trial.
        left_out: groups that are not ranked here.
        unmeasured: entries of the group that finished and were not measured on this split, as most of a search is.
        retrained_utility: U of the retrained model; null where it was not measured.
    """

    task: str
    split: str
    attack_set: str
    attacks: tuple[str, ...]
    floor: float
    group: Group | None
    entries: tuple[Entry, ...]
    left_out: tuple[Group, ...] = ()
    unmeasured: int = 0
    retrained_utility: float | None = None
    schema_version: int = schema.VERSION

    def as_json(self) -> dict[str, Any]:
        """The ranking as plain dicts, lists and scalars for `json.dumps`; a number that is not finite is null."""
        return _plain(asdict(self))


def rank(
    source: Board | Mapping[str, pa.Table],
    task: str,
    split: str = Split.TEST,
    *,
    attack_set: str | None = None,
    floor: float = FLOOR,
    engine: str | None = None,
    anchor_ids: str | None = None,
) -> Ranking:
    """Ranks the entries of a task.

    Args:
        source: a board, or its tables `trials` and `measurements` with one row per key.
        attack_set: name of an official attack set of the task; by default the newest.
        floor: utility that an entry has to keep, a share of the target's.
        engine, anchor_ids: the group to rank; by default the one with the most trials.

    Raises:
        ValueError: no such task, split or attack set.
        BoardError: no trial has this engine and these anchors.
    """
    set_name, attacks = _official(task, Split(split), attack_set)
    trials = [row | {"entry": row["entry"] or row["trial"]} for row in _rows(source, "trials", {"task": task})]
    scope = {"task": task, "split": str(split), "matching": schema.RAW, "headline": ["knowledge", "utility"]}
    answers: defaultdict[tuple[str, str, str], Rows] = defaultdict(list)
    engines: defaultdict[str, set[str]] = defaultdict(set)
    for row in _rows(source, "measurements", scope, _MEASURED):
        answers[row["trial"], row["subject"], row["engine"]].append(row)
        engines[row["trial"]].add(row["engine"])
    groups = _groups(trials, engines)
    group = _chosen(groups, task, engine, anchor_ids)
    if group is None:
        return Ranking(task, split, set_name, attacks, floor, None, ())

    def subject(trial: str | None, name: str) -> Answers:
        return Answers.of(name, answers.get((trial, name, group.engine), ()))

    anchors = {
        recipe: (subject(recipe, "target"), subject(recipe, "retrained"))
        for recipe in {row["anchors"] for row in groups[group]}
    }
    seeds: defaultdict[str, list[Trial]] = defaultdict(list)
    for row in groups[group]:
        target, retrained = anchors[row["anchors"]]
        forgotten = zero(row["anchor_ids"], target, retrained)
        found = headlines(subject(row["trial"], "unlearned"), target, forgotten, attacks)
        seeds[row["entry"]].append(Trial(row, found))
    # Once one seed is measured the others are missed, so that nobody measures the best seed alone.
    shown = {entry: same for entry, same in seeds.items() if any(_says_something(t.row, engines) for t in same)}
    named = labels(min(same, key=lambda trial: trial.row["trial"]).row for same in shown.values())
    entries = [combined(named[entry], same) for entry, same in shown.items()]
    utilities = [kept(retrained, target).value for target, retrained in anchors.values()]
    return Ranking(
        task,
        split,
        set_name,
        attacks,
        floor,
        replace(group, trials=len(groups[group])),
        tuple(_ordered(entries, floor)),
        tuple(replace(other, trials=len(rows)) for other, rows in _by_size(groups) if other != group),
        len(seeds) - len(shown),
        min((utility for utility in utilities if utility is not None), default=None),
    )


def _official(task: str, split: Split, attack_set: str | None) -> tuple[str, tuple[str, ...]]:
    if task not in TASKS:
        raise ValueError(f"no such task: {task}. There are: {', '.join(sorted(TASKS))}")
    sets, name = TASKS[task].attack_sets, attack_set or TASKS[task].official
    if name not in sets:
        raise ValueError(f"{task} has no attack set {name}. It has: {', '.join(sets)}")
    return name, tuple(attack_name(settings) for settings in sets[name][split])


def _rows(
    source: Board | Mapping[str, pa.Table], table: str, where: Mapping[str, object], names: Sequence[str] = ()
) -> Rows:
    if isinstance(source, Board):
        found = source.read(table, where)
        return found.select(list(names) or found.column_names).to_pylist()
    wanted = {name: value if isinstance(value, list) else [value] for name, value in where.items()}
    return [row for row in source[table].to_pylist() if all(row[name] in wanted[name] for name in wanted)]


def _groups(trials: Rows, engines: Mapping[str, set[str]]) -> dict[Group, Rows]:
    """Trials by what they have in common. One that was never measured is shown in every group that it may belong to."""
    groups: defaultdict[Group, Rows] = defaultdict(list)
    common = ("anchor_ids", "task_version", "data")
    for row in trials:
        for engine in engines.get(row["trial"], ()):
            groups[Group(engine=engine, **{name: row[name] for name in common})].append(row)
    measured = list(groups)
    for row in trials:
        if row["trial"] not in engines:
            fitting = [group for group in measured if all(row[n] in (None, getattr(group, n)) for n in common)]
            for group in fitting or [Group(engine=None, **{name: row[name] for name in common})]:
                groups[group].append(row)
    return groups


def _chosen(groups: Mapping[Group, Rows], task: str, engine: str | None, anchor_ids: str | None) -> Group | None:
    fitting = {
        group: rows
        for group, rows in groups.items()
        if engine in (None, group.engine) and anchor_ids in (None, group.anchor_ids)
    }
    if not fitting and (engine or anchor_ids):
        wanted = f"engine {engine or 'any'}, anchors {anchor_ids or 'any'}"
        found = "; ".join(f"engine {group.engine}, anchors {group.anchor_ids}" for group, _ in _by_size(groups))
        raise BoardError(f"{task}: no trial with {wanted}. There is: {found or 'no trial'}")
    return next((group for group, _ in _by_size(fitting)), None)


def _by_size(groups: Mapping[Group, Rows]) -> list[tuple[Group, Rows]]:
    """The largest group first; among equals the newest task version, then by name, so that the choice is stable."""
    return sorted(
        groups.items(),
        key=lambda item: (
            -len(item[1]),
            -(item[0].task_version or 0),
            *(str(part) for part in (item[0].anchor_ids, item[0].engine, item[0].data)),
        ),
    )


def _says_something(trial: Mapping[str, Any], engines: Mapping[str, set[str]]) -> bool:
    return trial["trial"] in engines or trial["status"] in (Status.FAILED, Status.DIVERGED)


def _ordered(entries: Iterable[Entry], floor: float) -> Iterable[Entry]:
    by_score = sorted(entries, key=lambda entry: (-(entry.score.value or 0.0), entry.entry))
    scored = [entry for entry in by_score if entry.reason is None]
    front = _pareto_front(scored)
    above = [entry for entry in scored if entry.utility.value >= floor]
    below = [entry for entry in scored if entry.utility.value < floor]
    places = [*_places(above, start=1), *_places(below, start=len(above) + 1)]
    for entry, place in zip([*above, *below], places, strict=True):
        yield replace(entry, rank=place, below_floor=entry.utility.value < floor, pareto=entry.entry in front)
    yield from (entry for entry in by_score if entry.reason is not None)


def _places(entries: Sequence[Entry], start: int) -> Iterable[int]:
    """Ranks down the list. An entry shares its leader's rank while their 95 % intervals over examples overlap.

    The leader is the first entry of the rank, not the one just above: a chain of overlaps does not make one big tie.
    A new rank is the entry's position, as in sports (1, 1, 3).
    """
    leader: Number | None = None
    place = start
    for position, entry in enumerate(entries, start):
        score = entry.score
        if leader is None or score.value + score.margin < leader.value - leader.margin:
            leader, place = score, position
        yield place


def _pareto_front(entries: Iterable[Entry]) -> set[str]:
    """Entries that no other one dominates: at least as good in F, R and U, and better in one of them."""
    points = {entry.entry: (entry.forgetting.value, entry.robustness.value, entry.utility.value) for entry in entries}
    front: dict[str, tuple[float, float, float]] = {}
    # In descending order a point can only be dominated by one before it, and then also by one of the front.
    for name, point in sorted(points.items(), key=lambda item: item[1], reverse=True):
        if not any(_dominates(other, point) for other in front.values()):
            front[name] = point
    return set(front)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
