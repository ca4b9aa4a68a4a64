"""Ranks entries, first by the utility constraint and then by score, within comparable groups.

Entries with utility U >= floor come first, in order of the score; then those below the floor; then those without a
score, each with its reason. At matched utility all entries keep it, and the score alone decides. Only trials with the
same anchors, task version, data, prompt template and engine are ranked together; other numbers are on other scales, so
they are listed as left out and never mixed in. Engines can be mixed on request; a trial and its anchors still use one
engine.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from leaderboard.board import schema
from leaderboard.board.schema import RAW, Status, matching
from leaderboard.ranking.attack_labels import attack_labels
from leaderboard.ranking.entry import Cost, Entry, Matched, Numbers, Seed, Trial, combined
from leaderboard.ranking.groups import Group, by_size, chosen, grouped, left_out_by_engine
from leaderboard.ranking.headlines import utility_share
from leaderboard.ranking.labels import labels
from leaderboard.ranking.measured import Source, TaskMeasurements, rows
from leaderboard.ranking.number import Number
from leaderboard.ranking.ordering import ordered
from leaderboard.ranking.replicated import Replicating
from leaderboard.ranking.verdict import Verdict
from tasks import TASKS, Split, attack_name

__all__ = ["FLOOR", "Cost", "Entry", "Group", "Matched", "Number", "Ranking", "Seed", "rank"]

FLOOR = 0.9
"""Utility that an entry has to keep: below it, forgetting is easy."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of one task and split.

    Attributes:
        attacks: attacks of the official set, as in the column `attack`.
        attack_labels: a short name for each of them.
        group: what the ranked trials have in common; null when the task has no trial.
        left_out: groups that are not ranked here.
        left_out_by_engine: by engine the number of trials that are left out only because of their engine.
        unmeasured: entries of the group that finished but were not measured on this split, as most of a search is.
        retrained_utility: U of the retrained model; null where it was not measured.
        matched: whether ranks, Pareto front and reasons are about the numbers at matched utility.
        matched_floor: the utility floor of retention matching; null where there are no such rows, or rows of several
            floors.
        verdict: who leads, who cannot be told from whom, and what the table can tell.
    """

    task: str
    split: str
    attack_set: str
    attacks: tuple[str, ...]
    attack_labels: Mapping[str, str]
    floor: float
    group: Group | None
    entries: tuple[Entry, ...]
    left_out: tuple[Group, ...] = ()
    left_out_by_engine: Mapping[str, int] = field(default_factory=dict)
    unmeasured: int = 0
    retrained_utility: float | None = None
    matched: bool = False
    matched_floor: float | None = None
    verdict: Verdict = field(default_factory=Verdict)
    schema_version: int = schema.VERSION

    @property
    def mixes_engines(self) -> bool:
        """Whether its entries were measured by different engines."""
        return self.group is not None and len(self.group.engines) > 1

    def shown(self, entry: Entry) -> Numbers | None:
        """The numbers of an entry that this ranking uses; None where it has none at matched utility."""
        return entry.matched if self.matched else entry

    def as_json(self) -> dict[str, Any]:
        """The ranking as plain dicts, lists and scalars for `json.dumps`; a number that is not finite is null.

        Replicates are left out: `regrade board compare` gives what follows from them.
        """
        entries = [
            replace(entry, replicated=None, matched=entry.matched and replace(entry.matched, replicated=None))
            for entry in self.entries
        ]
        found = asdict(replace(self, entries=tuple(entries)))
        for entry in found["entries"]:
            for numbers in (entry, entry["matched"] or {}):
                numbers.pop("replicated", None)
        return _plain(found)


def rank(
    source: Source,
    task: str,
    split: str = Split.TEST,
    *,
    attack_set: str | None = None,
    floor: float = FLOOR,
    engine: str | None = None,
    anchor_ids: str | None = None,
    mix_engines: bool = False,
    matched: bool = False,
) -> Ranking:
    """Ranks the entries of a task.

    Args:
        source: a board, or its tables `trials` and `measurements` with one row per key.
        attack_set: name of an official attack set of the task; by default the newest.
        floor: utility that an entry has to keep, a share of the target's.
        engine, anchor_ids: the group to rank; by default the one with the most trials.
        mix_engines: rank trials that different engines measured in one table. If several engines measured a trial,
            the numbers of one are used (see `TaskMeasurements.chosen_engines`).
        matched: rank by the numbers of weights that were mixed back until utility reached the floor.

    Raises:
        ValueError: no such task, split or attack set; or both `engine` and `mix_engines`.
        BoardError: no trial has this engine and these anchors.
    """
    if engine and mix_engines:
        raise ValueError(f"either the trials of {engine} are ranked, or those of all engines")
    set_name, attacks = _official(task, Split(split), attack_set)
    trials = [row | {"entry": row["entry"] or row["trial"]} for row in rows(source, "trials", {"task": task})]
    measured = TaskMeasurements.read(source, task, split)
    groups = grouped(trials, measured.engines, mix_engines=mix_engines)
    group = chosen(groups, task, engine, anchor_ids)
    common = (task, split, set_name, attacks, attack_labels(attacks), floor)
    if group is None:
        return Ranking(*common, None, (), matched=matched)
    engines = measured.chosen_engines(groups[group], group.engines)
    matched_floor = measured.floor(engines, floor)
    matched_name = None if matched_floor is None else matching(matched_floor)
    of_trials = [(row, engines[row["trial"]]) for row in groups[group]]
    replicating = Replicating.read(source, measured, of_trials, [RAW, *([matched_name] if matched_name else [])])
    seeds: defaultdict[str, list[Trial]] = defaultdict(list)
    for row, measuring in of_trials:
        trial = measured.trial(row, measuring, attacks, matched_floor)
        seeds[row["entry"]].append(replicating.trial(trial, attacks, matched_name))
    # Once one seed is measured the others count as missing, so that nobody can measure the best seed only.
    shown = {entry: same for entry, same in seeds.items() if any(_is_shown(t) for t in same)}
    named = labels(min(same, key=lambda trial: trial.row["trial"]).row for same in shown.values())
    entries = [combined(named[entry], same, matched_floor) for entry, same in shown.items()]
    # Of the engines that measured a mixed group, some may be chosen for no trial.
    used = tuple(name for name in group.engines if any(name in entry.engines for entry in entries)) or group.engines
    utilities = [
        utility_share(*(measured.model(recipe, anchor, engine_name) for anchor in ("retrained", "target"))).value
        for recipe, engine_name in {(row["anchors"], engines[row["trial"]]) for row in groups[group]}
    ]
    placed, verdicts = ordered(entries, floor, matched=matched)
    return Ranking(
        *common,
        replace(group, trials=len(groups[group]), engines=used),
        tuple(placed),
        tuple(replace(other, trials=len(same)) for other, same in by_size(groups) if other != group),
        left_out_by_engine(groups, group),
        len(seeds) - len(shown),
        min((utility for utility in utilities if utility is not None), default=None),
        matched,
        matched_floor,
        Verdict.of(placed, verdicts),
    )


def _official(task: str, split: Split, attack_set: str | None) -> tuple[str, tuple[str, ...]]:
    if task not in TASKS:
        raise ValueError(f"no such task: {task}. There are: {', '.join(sorted(TASKS))}")
    sets, name = TASKS[task].attack_sets, attack_set or TASKS[task].official
    if name not in sets:
        raise ValueError(f"{task} has no attack set {name}. It has: {', '.join(sets)}")
    return name, tuple(attack_name(settings) for settings in sets[name][split])


def _is_shown(trial: Trial) -> bool:
    return trial.engine is not None or trial.row["status"] in (Status.FAILED, Status.DIVERGED)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
