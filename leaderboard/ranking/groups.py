"""Groups of trials whose numbers are on one scale: only these are ranked together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from leaderboard.board.schema import RANDOM_CHANGE
from leaderboard.board.store import BoardError
from leaderboard.ranking.headlines import at_chance
from leaderboard.ranking.measured import Rows
from leaderboard.ranking.specs import settings_of

_WORDS = {"anchor_ids": "anchors", "task_version": "task version", "data": "data", "template": "prompt template"}


@dataclass(frozen=True, slots=True)
class Group:
    """What trials must have in common to be ranked together.

    Attributes:
        engines: engines that measured the trials: one, or several where they are mixed; none if nothing was measured.
        template: how questions are put to the model, as in the column `template`; null where it was not written down.
        trials: number of trials of the group.
    """

    anchor_ids: str | None
    engines: tuple[str, ...]
    task_version: int | None
    data: str | None
    template: str | None = None
    trials: int = field(default=0, compare=False)

    def differences(self, other: Group) -> tuple[str, ...]:
        """What differs between two groups besides their engines, in words."""
        return tuple(word for name, word in _WORDS.items() if getattr(self, name) != getattr(other, name))

    def differs_only_in_engines(self, other: Group) -> bool:
        """Whether two groups differ only in their engines."""
        return self != other and not self.differences(other)

    @property
    def at_chance(self) -> bool:
        """Whether chance replaces the retrained model."""
        return at_chance(self.anchor_ids)


def grouped(trials: Rows, engines: Mapping[str, set[str]], *, mix_engines: bool) -> Mapping[Group, Rows]:
    """Trials by group. A trial that was never measured is in every group that it may belong to.

    Args:
        engines: by trial those that measured it. The trial is in the group of each, or in the mixed group.
    """
    groups: defaultdict[Group, Rows] = defaultdict(list)
    for row in trials:
        for engine in engines.get(row["trial"], ()):
            groups[Group(engines=(engine,), **_common(row))].append(row)
    if mix_engines:
        groups = _mixed(groups)
    measured = list(groups)
    for row in trials:
        if row["trial"] not in engines:
            common = _common(row)
            fitting = [g for g in measured if all(value in (None, getattr(g, name)) for name, value in common.items())]
            for group in fitting or [Group(engines=(), **common)]:
                groups[group].append(row)
    return groups


def is_null(trial: Mapping[str, Any]) -> bool:
    """Whether a row of the table `trials` stands for no method, so that it is in no group."""
    return trial["optimizer"] == RANDOM_CHANGE


def on_scale(group: Group, trials: Iterable[dict[str, Any]], engines: Mapping[str, set[str]]) -> Rows:
    """Those trials whose numbers are on a group's scale, measured by an engine of the group's.

    Args:
        engines: by trial those that measured it.
    """
    return [
        row
        for row in trials
        if Group(engines=group.engines, **_common(row)) == group and engines.get(row["trial"], set()) & {*group.engines}
    ]


def chosen(groups: Mapping[Group, Rows], task: str, engine: str | None, anchor_ids: str | None) -> Group | None:
    """The largest group, of those with an engine and anchors where these are named; None where there is no trial.

    Raises:
        BoardError: no trial has this engine and these anchors.
    """
    fitting = {
        group: rows
        for group, rows in groups.items()
        if engine in (None, *group.engines) and anchor_ids in (None, group.anchor_ids)
    }
    if not fitting and (engine or anchor_ids):
        wanted = f"engine {engine or 'any'}, anchors {anchor_ids or 'any'}"
        there = (group for group, _ in by_size(groups))
        available = "; ".join(f"engine {' and '.join(g.engines) or 'none'}, anchors {g.anchor_ids}" for g in there)
        raise BoardError(f"{task}: no trial with {wanted}. There is: {available or 'no trial'}")
    return next((group for group, _ in by_size(fitting)), None)


def by_size(groups: Mapping[Group, Rows]) -> list[tuple[Group, Rows]]:
    """The largest group first; ties by newest task version, then by name, so that the order is stable."""
    return sorted(
        groups.items(),
        key=lambda item: (
            -len(item[1]),
            -(item[0].task_version or 0),
            *(str(part) for part in (item[0].anchor_ids, item[0].engines, item[0].data, item[0].template)),
        ),
    )


def left_out_by_engine(groups: Mapping[Group, Rows], group: Group) -> dict[str, int]:
    """By engine the number of trials that are not in a group only because of their engine."""
    here = {row["trial"] for row in groups[group]}
    counts = {
        name: sum(row["trial"] not in here for row in same)
        for other, same in by_size(groups)
        if group.differs_only_in_engines(other)
        for name in other.engines
    }
    return {name: count for name, count in counts.items() if count}


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: row[name] for name in ("anchor_ids", "task_version", "data")}, "template": _template(row)}


def _template(row: Mapping[str, Any]) -> str | None:
    """How a trial's questions were put.

    Rows from before the column was there have none. Those about the tiny model, which has no chat template, belong with
    the rows of today; other models were asked with other tokens, so theirs are a group of their own.
    """
    if row["template"] is not None or row["model"] != "tiny" or row["anchor_ids"] is None:
        return row["template"]
    settings = settings_of(row["spec"])
    return None if settings.get("anchors.target") else settings.get("model.template") or "bare"


def _mixed(groups: Mapping[Group, Rows]) -> defaultdict[Group, Rows]:
    """Merges groups that differ only in their engines; each trial occurs once."""
    parts: defaultdict[Group, list[Group]] = defaultdict(list)
    for group in groups:
        parts[replace(group, engines=())].append(group)
    mixed: defaultdict[Group, Rows] = defaultdict(list)
    for base, same in parts.items():
        engines = tuple(sorted(name for group in same for name in group.engines))
        once = {row["trial"]: row for group in same for row in groups[group]}
        mixed[replace(base, engines=engines)] = list(once.values())
    return mixed
