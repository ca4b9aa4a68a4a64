"""The trials of a task that are ranked or compared together, with what was measured of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from leaderboard.board.schema import RAW, UNLEARNED, Status, matching
from leaderboard.ranking.groups import Group, chosen, grouped, is_null, on_scale
from leaderboard.ranking.labels import labels
from leaderboard.ranking.measured import Row, Rows, Source, TaskMeasurements, rows
from leaderboard.ranking.replicated_trials import ReplicatingTrials
from leaderboard.ranking.trial import Trial
from tasks import TASKS, Split, attack_name, attack_seed

AS_MEASURED = "as measured"
"""Name of the attack set of a task that is not known here."""


@dataclass(frozen=True)
class Selection:
    """One group of the trials of a task.

    Attributes:
        attack_set: name of the official attack set; `attacks` are its attacks as in the column `attack`.
        groups: all trials of the task by group; `group` is the one that is selected, and `rows` its trials.
        nulls: the null trials on the group's scale, which are in no group.
        engines: by trial the engine whose numbers are used.
        matched_floor: the utility floor of retention matching; None where there are no such rows, or several floors.
    """

    attack_set: str
    attacks: tuple[str, ...]
    groups: Mapping[Group, Rows]
    group: Group | None
    rows: Rows
    nulls: Rows
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
        floor: float | None,
        *,
        engine: str | None = None,
        anchor_ids: str | None = None,
        mix_engines: bool = False,
    ) -> Self:
        """The arguments are those of `leaderboard.ranking.rank.rank`; without a floor there are no matched weights.

        Raises:
            ValueError: no such task, split or attack set; or both `engine` and `mix_engines`.
            BoardError: no trial has this engine and these anchors.
        """
        if engine and mix_engines:
            raise ValueError(f"either the trials of {engine} are ranked, or those of all engines")
        name, attacks = attacks_of(source, task, Split(split), attack_set)
        every = [row | {"entry": row["entry"] or row["trial"]} for row in rows(source, "trials", {"task": task})]
        trials = [row for row in every if not is_null(row)]
        measured = TaskMeasurements.read(source, task, split)
        groups = grouped(trials, measured.engines, mix_engines=mix_engines)
        group = chosen(groups, task, engine, anchor_ids)
        here = groups[group] if group else []
        engines = measured.chosen_engines(here, group.engines if group else ())
        matched_floor = measured.floor(engines, floor) if floor is not None else None
        nulls = on_scale(group, filter(is_null, every), measured.engines) if group else []
        engines |= measured.chosen_engines(nulls, group.engines if group else ())
        return cls(name, attacks, groups, group, here, nulls, measured, engines, matched_floor, source)

    @cached_property
    def entries(self) -> dict[str, Rows]:
        """The trials of each entry."""
        found: defaultdict[str, Rows] = defaultdict(list)
        for row in self.rows:
            found[row["entry"]].append(row)
        return dict(found)

    @cached_property
    def shown(self) -> dict[str, str]:
        """By entry its name on the board, of the entries of which a trial was measured, or failed, or diverged.

        Once one run is measured the others count as missing, so that nobody can measure the best one only.
        """
        found = {entry: rows for entry, rows in self.entries.items() if any(map(self._is_shown, rows))}
        return labels(min(rows, key=lambda row: row["trial"]) for rows in found.values())

    def _is_shown(self, row: Row) -> bool:
        measured = self.engines[row["trial"]] in self.measured.engines.get(row["trial"], ())
        return measured or row["status"] in (Status.FAILED, Status.DIVERGED)

    def replicating(self, some: Rows) -> ReplicatingTrials:
        """What makes replicates of these trials, with their items."""
        names = [RAW] if self.matched_floor is None else [RAW, matching(self.matched_floor)]
        trials = [(row, self.engines[row["trial"]]) for row in some]
        return ReplicatingTrials.read(self._source, self.measured, trials, names, self.matched_floor)

    def trials(self, entry: str, replicating: ReplicatingTrials) -> list[Trial]:
        """An entry's trials, with their headlines and replicates, which are large."""
        return [self.trial(row, replicating) for row in self.entries[entry]]

    def trial(self, row: Row, replicating: ReplicatingTrials) -> Trial:
        """A trial with its headlines and replicates."""
        trial = self.measured.trial(row, self.engines[row["trial"]], self.attacks, self.matched_floor)
        return replicating.trial(trial, self.attacks, self.matched_floor)


def attacks_of(source: Source, task: str, split: Split, attack_set: str | None) -> tuple[str, tuple[str, ...]]:
    """Name and attacks of the set that R covers: an official one, or, of a task that another package brings and that is
    not installed here, all attacks that its rows have.

    Raises:
        ValueError: no such task or attack set.
    """
    if task in TASKS or attack_set not in (None, AS_MEASURED):
        return official(task, split, attack_set)
    where = {"task": task, "split": str(split), "subject": UNLEARNED, "matching": RAW}
    names = sorted({row["attack"] for row in rows(source, "measurements", where, ("attack",))})
    if not names:
        return official(task, split, attack_set)
    return AS_MEASURED, tuple({attack_seed(name)[0]: name for name in reversed(names)}.values())


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
