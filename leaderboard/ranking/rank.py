"""Ranks entries, first by the utility constraint and then by score, within comparable groups.

Entries with utility U >= floor come first, in order of the score; then those below the floor; then those without a
score, each with its reason. At matched utility all entries keep it, and the score alone decides. Only trials with the
same anchors, task version, data, prompt template and engine are ranked together; other numbers are on other scales, so
they are listed as left out and never mixed in. Engines can be mixed on request; a trial and its anchors still use one
engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from leaderboard.board import schema
from leaderboard.ranking.attack_labels import attack_labels
from leaderboard.ranking.ceilings import ceilings
from leaderboard.ranking.entry import Cost, Entry, Matched, Numbers, Seed, combined
from leaderboard.ranking.groups import Group, by_size, left_out_by_engine
from leaderboard.ranking.headlines import utility_share
from leaderboard.ranking.measured import Source, TaskMeasurements
from leaderboard.ranking.null_entries import NullEntry, null_entries
from leaderboard.ranking.number import Number
from leaderboard.ranking.ordering import ordered
from leaderboard.ranking.plain import plain
from leaderboard.ranking.replicated_trials import ReplicatingTrials
from leaderboard.ranking.retention_matching import matched_on
from leaderboard.ranking.searches import Search, search_id, searches
from leaderboard.ranking.selection import Selection, attacks_of
from leaderboard.ranking.uncollected import uncollected
from leaderboard.ranking.verdict import Verdict
from tasks import Split

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
        null_entries: what the table gives for models that stand for no method; never ranked.
        searches: the searches and grids that entries come from; the others declare none.
        ceilings: by attack and probe the most that excess recovery can be (`leaderboard.ranking.ceilings`).
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
    ceilings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    searches: tuple[Search, ...] = ()
    null_entries: tuple[NullEntry, ...] = ()
    schema_version: int = schema.VERSION

    @property
    def mixes_engines(self) -> bool:
        """Whether its entries were measured by different engines."""
        return self.group is not None and len(self.group.engines) > 1

    @property
    def matched_kinds(self) -> tuple[str, ...]:
        """How its entries were matched, `curve` or `share` (`leaderboard.ranking.retention_matching`)."""
        return tuple(sorted({kind for entry in self.entries if entry.matched for kind in entry.matched.kinds}))

    @property
    def matched_on(self) -> str:
        """On which questions utility is at the floor where it is matched."""
        return matched_on(self.matched_kinds, self.split)

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
        return plain(found)


@uncollected()
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
    here = Selection.of(
        source, task, split, attack_set, floor, engine=engine, anchor_ids=anchor_ids, mix_engines=mix_engines
    )
    common = (task, split, here.attack_set, here.attacks, attack_labels(here.attacks), floor)
    if here.group is None:
        return Ranking(*common, None, (), matched=matched)
    shown = here.shown
    replicating = here.replicating([*here.nulls, *(row for entry in shown for row in here.entries[entry])])
    # One after another: the replicates of all trials of a large board would take all memory.
    entries = [combined(label, here.trials(entry, replicating), here.matched_floor) for entry, label in shown.items()]
    # Of the engines that measured a mixed group, some may be chosen for no trial.
    engines = here.group.engines
    used = tuple(name for name in engines if any(name in entry.engines for entry in entries)) or engines
    utilities = [
        utility_share(*(here.measured.anchor(recipe, anchor, name) for anchor in ("retrained", "target"))).value
        for recipe, name in {(row["anchors"], here.engines[row["trial"]]) for row in here.rows}
    ]
    placed, verdicts = ordered(entries, floor, matched=matched)
    return Ranking(
        *common,
        replace(here.group, trials=len(here.rows), engines=used),
        tuple(placed),
        tuple(replace(other, trials=len(same)) for other, same in by_size(here.groups) if other != here.group),
        left_out_by_engine(here.groups, here.group),
        len(here.entries) - len(shown),
        min((utility for utility in utilities if utility is not None), default=None),
        matched,
        here.matched_floor,
        Verdict.of(placed, verdicts),
        _ceilings(here),
        _searches(source, task, here, list(shown)),
        _null_entries(source, here, replicating, matched=matched),
    )


def _searches(source: Source, task: str, here: Selection, shown: Sequence[str]) -> tuple[Search, ...]:
    """With the plain scores of their trials on dev, each by the engine whose numbers are used."""
    trials = [row for row in here.rows if search_id(row)]
    if not trials:
        return ()
    dev = TaskMeasurements.read(source, task, Split.DEV)
    _, attacks = attacks_of(source, task, Split.DEV, here.attack_set)
    measured = [row for row in trials if here.engines[row["trial"]] in dev.engines.get(row["trial"], ())]
    found = [dev.trial(row, here.engines[row["trial"]], attacks, None) for row in measured]
    scores = {trial.row["trial"]: trial.headlines.score.value for trial in found}
    return searches(trials, shown, {trial: score for trial, score in scores.items() if score is not None})


def _typical(here: Selection) -> tuple[dict[str, Any], str | None] | None:
    """A trial with the anchors that most trials have, and the engine whose numbers are used."""
    recipes = Counter((row["anchors"], here.engines[row["trial"]]) for row in here.rows if row["anchors"])
    if not recipes:
        return None
    [((recipe, engine), _)] = recipes.most_common(1)
    return next(row for row in here.rows if row["anchors"] == recipe), engine


def _ceilings(here: Selection) -> dict[str, dict[str, float]]:
    if (typical := _typical(here)) is None:
        return {}
    row, engine = typical
    model = here.measured.model(row["trial"], schema.UNLEARNED, engine)
    found = here.measured.models(model, row, engine, here.attacks)
    return ceilings(found.target, found.retrained, row["anchor_ids"], here.attacks)


def _null_entries(
    source: Source, here: Selection, replicating: ReplicatingTrials, *, matched: bool
) -> tuple[NullEntry, ...]:
    typical = _typical(here)
    return null_entries(source, here, replicating, *typical, matched=matched) if typical else ()
