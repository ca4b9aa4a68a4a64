"""The trials of a task that are ranked or compared together, with what was measured of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from leaderboard.board.schema import RAW, matching
from leaderboard.ranking.entry import Trial
from leaderboard.ranking.groups import Group, chosen, grouped
from leaderboard.ranking.measured import Rows, Source, TaskMeasurements, rows
from leaderboard.ranking.replicated import Replicating
from tasks import TASKS, Split, attack_name


@dataclass(frozen=True, slots=True)
class Selection:
    """One group of the trials of a task.

    Attributes:
        attack_set: name of the official attack set; `attacks` are its attacks as in the column `attack`.
        groups: all trials of the task by group; `group` is the one that is selected, and `rows` its trials.
        engines: by trial the engine whose numbers are used.
        matched_floor: the utility floor of retention matching; None where there are no such rows, or several floors.
    """

    attack_set: str
    attacks: tuple[str, ...]
    groups: Mapping[Group, Rows]
    group: Group | None
    rows: Rows
    measured: TaskMeasurements
    engines: Mapping[str, str | None]
    matched_floor: float | None
    _source: Source

    @classmethod
    def of(
        cls,
        source: Source,
        task: str,
        split: str,
        attack_set: str | None,
        floor: float,
        *,
        engine: str | None = None,
        anchor_ids: str | None = None,
        mix_engines: bool = False,
    ) -> Self:
        """The arguments are those of `leaderboard.ranking.rank.rank`.

        Raises:
            ValueError: no such task, split or attack set; or both `engine` and `mix_engines`.
            BoardError: no trial has this engine and these anchors.
        """
        if engine and mix_engines:
            raise ValueError(f"either the trials of {engine} are ranked, or those of all engines")
        name, attacks = official(task, Split(split), attack_set)
        trials = [row | {"entry": row["entry"] or row["trial"]} for row in rows(source, "trials", {"task": task})]
        measured = TaskMeasurements.read(source, task, split)
        groups = grouped(trials, measured.engines, mix_engines=mix_engines)
        group = chosen(groups, task, engine, anchor_ids)
        here = groups[group] if group else []
        engines = measured.chosen_engines(here, group.engines if group else ())
        return cls(name, attacks, groups, group, here, measured, engines, measured.floor(engines, floor), source)

    def trials(self, entries: Collection[str] | None = None) -> dict[str, list[Trial]]:
        """By entry its trials, with their headlines and replicates; of these entries, or of all."""
        names = [RAW] if self.matched_floor is None else [RAW, matching(self.matched_floor)]
        some = [row for row in self.rows if entries is None or row["entry"] in entries]
        of_trials: list[tuple[dict[str, Any], str | None]] = [(row, self.engines[row["trial"]]) for row in some]
        replicating = Replicating.read(self._source, self.measured, of_trials, names, self.matched_floor)
        found: defaultdict[str, list[Trial]] = defaultdict(list)
        for row, engine in of_trials:
            trial = self.measured.trial(row, engine, self.attacks, self.matched_floor)
            found[row["entry"]].append(replicating.trial(trial, self.attacks, self.matched_floor))
        return dict(found)


def official(task: str, split: Split, attack_set: str | None) -> tuple[str, tuple[str, ...]]:
    """Name and attacks of an official attack set, by default of the newest.

    Raises:
        ValueError: no such task or attack set.
    """
    if task not in TASKS:
        raise ValueError(f"no such task: {task}. There are: {', '.join(sorted(TASKS))}")
    sets, name = TASKS[task].attack_sets, attack_set or TASKS[task].official
    if name not in sets:
        raise ValueError(f"{task} has no attack set {name}. It has: {', '.join(sets)}")
    return name, tuple(attack_name(settings) for settings in sets[name][split])
