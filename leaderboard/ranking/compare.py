"""Two entries side by side: by how much every headline and attack differs, run by run and question by question."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from leaderboard.board.schema import Status
from leaderboard.ranking.attack_labels import attack_labels
from leaderboard.ranking.comparison import Difference, Replicated, Replicates, compared
from leaderboard.ranking.comparison.difference import LEVEL
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.measured import Source
from leaderboard.ranking.moved import Moved, moved_items
from leaderboard.ranking.number import rounded
from leaderboard.ranking.plain import plain
from leaderboard.ranking.replicated import Replicating
from leaderboard.ranking.retention_matching import matched_on
from leaderboard.ranking.selection import Selection
from leaderboard.ranking.trial import Trial
from leaderboard.ranking.uncollected import uncollected
from tasks.errors import RequestError

NUMBERS = {
    "score": "score",
    "forgetting": "F",
    "robustness": "R",
    "robustness_harmonic": "R hm",
    "utility": "U",
}
"""Headlines in the order of a comparison, with their short names."""


class NotCompared(RequestError):
    """Entries that cannot be compared, or that nobody knows; the message says why. Who asks names others."""


@dataclass(frozen=True, slots=True)
class Line:
    """One number of two entries.

    Attributes:
        name: a headline, or an attack as in the column `attack`; `label` is a short one.
        attack: whether it is the recovery under an attack, where less is better.
        one, other: the entries' numbers.
        difference: `one` less `other`.
        plain: the same with the worst of attacks and probes chosen on the items that it is read on; null for attacks.
    """

    name: str
    label: str
    attack: bool
    one: float
    other: float
    difference: Difference
    plain: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two entries.

    Attributes:
        one, other: ids; the labels are their names on the board.
        seeds: the seeds that pair the runs; empty where the entries have other seeds.
        lines: headlines, then attacks.
        items: questions whose answers differ most, the largest difference first.
        levels: sentences on the seeds of attacks and of anchors; none where neither has several.
        matched: where the numbers are at matched utility, the floor and the questions on which utility is at it, in
            words; null for the weights as they are. Then there are no `items`.
    """

    task: str
    split: str
    attack_set: str
    one: str
    other: str
    one_label: str
    other_label: str
    runs: tuple[int, int]
    seeds: tuple[str, ...]
    lines: tuple[Line, ...]
    items: tuple[Moved, ...]
    levels: tuple[str, ...] = ()
    matched: str | None = None

    def sentences(self) -> list[str]:
        """The comparison in words."""
        first = self.lines[0]
        what = f"{self.one_label} against {self.other_label}"
        if first.difference.p is None:
            verdict = f"{what}: with one run of an entry nothing is said over runs; the intervals are over questions."
        else:
            size = rounded(abs(first.difference.estimate))
            p = f"p = {first.difference.p:.2g}"
            if first.difference.p < LEVEL:
                better = self.one_label if first.difference.estimate > 0 else self.other_label
                verdict = f"{what}: {better} is better, by {size} in the score ({p})."
            else:
                verdict = f"{what}: the scores cannot be told apart ({size}, {p})."
        how = (
            f"Runs are paired by seed ({len(self.seeds)})."
            if self.seeds
            else f"Runs have other seeds ({self.runs[0]} and {self.runs[1]}) and are not paired."
        )
        where = [f"At matched utility: {self.matched}."] if self.matched else []
        return [verdict, *where, how, *self.levels]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars for `json.dumps`; a number that is not finite is null."""
        found = plain(asdict(self))
        for name in ("levels", "matched"):
            if not found[name]:
                found.pop(name)
        return found


@uncollected()
def compare(
    source: Source,
    task: str,
    split: str,
    names: Sequence[str],
    *,
    attack_set: str | None = None,
    engine: str | None = None,
    mix_engines: bool = False,
    floor: float | None = None,
) -> list[Comparison]:
    """The first entry against each of the others.

    Args:
        names: entries by label, by id or its beginning, or by a part of a label that no other has.
        floor: compare at matched utility, with utility at this floor; by default the weights as they are.

    Raises:
        NotCompared: fewer than two entries, an unknown or ambiguous name, or an entry that cannot be compared.
        ValueError, BoardError: as for `leaderboard.ranking.rank.rank`.
    """
    here = Selection.of(source, task, split, attack_set, floor, engine=engine, mix_engines=mix_engines)
    named = here.shown
    found = [_found(name, named) for name in names]
    if len(set(found)) < 2:
        raise NotCompared(f"{', '.join(names)}: name two entries or more. There are: {_listed(named.values())}")
    one, *others = dict.fromkeys(found)
    replicating = here.replicating([row for entry in (one, *others) for row in here.entries[entry]])
    trials = {entry: here.trials(entry, replicating) for entry in (one, *others)}
    if floor is not None and here.matched_floor is None:
        raise NotCompared(f"nothing was measured at utility matched to {floor:g}. Set measure.match={floor:g}")
    sides = {
        entry: _Side(entry, named[entry], _runs(named[entry], same, here.matched_floor), same)
        for entry, same in trials.items()
    }
    return [_compared(replicating, here, (task, split), sides[one], sides[other]) for other in others]


class _Side(NamedTuple):
    """An entry that is compared.

    Attributes:
        runs: by what they are paired by.
    """

    entry: str
    label: str
    runs: Mapping[str, Replicates]
    trials: Sequence[Trial]

    def number(self, of: Callable[[Replicates], Array]) -> Replicated:
        return Replicated.of(self.runs, of)


def _found(name: str, named: Mapping[str, str]) -> str:
    exact = [entry for entry, label in named.items() if name in (entry, label)]
    begun = [entry for entry in named if len(name) >= 6 and entry.startswith(name)]
    word = [entry for entry, label in named.items() if name in label.split(" · ")]
    part = [entry for entry, label in named.items() if name.casefold() in label.casefold()]
    for fitting in (exact, begun, word, part):
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            which = _listed(f"{named[entry]} ({entry[:8]})" for entry in fitting)
            raise NotCompared(f"{name}: several entries are called so: {which}. Name one by its id")
    raise NotCompared(f"{name}: no such entry was measured here. There are: {_listed(named.values()) or 'none'}")


def _listed(names: Any, most: int = 12) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _runs(label: str, trials: Sequence[Trial], floor: float | None) -> dict[str, Replicates]:
    """An entry's runs by what they are paired by.

    Args:
        floor: utility floor of their matched weights; None for the weights as they are.
    """
    counted = [trial for trial in trials if trial.row["status"] != Status.FAILED]
    if not counted:
        raise NotCompared(f"{label}: no run finished")
    runs: dict[str, Replicates] = {}
    for trial in counted:
        found = trial if floor is None else trial.matched
        if found is None or found.replicates is None:
            missing = "not measured at matched utility" if found is None else found.headlines.score.reason
            why = trial.not_compared or missing or "it has no score"
            raise NotCompared(f"{label}, seed {trial.row['seed']}: {why}")
        runs[trial.pairing] = found.replicates
    return runs


def _compared(
    replicating: Replicating,
    here: Selection,
    where: tuple[str, str],
    one: _Side,
    other: _Side,
) -> Comparison:
    """Two entries of a task and split."""
    keys = one.entry, other.entry

    def line(name: str, label: str, of: Callable[[Replicates], Array], *, attack: bool = False) -> Line:
        mine, theirs = one.number(of), other.number(of)
        limit = None if attack else 1.0
        plain = None
        if not attack and name in next(iter(one.runs.values())).plain:
            plain = compared(one.number(lambda run: run.plain[name]), other.number(lambda run: run.plain[name]), keys)
        return Line(name, label, attack, mine.estimate, theirs.estimate, compared(mine, theirs, keys, limit), plain)

    def recovery(attack: str) -> Line:
        return line(attack, short.get(attack, attack), lambda run: run.recovery[attack], attack=True)

    short = attack_labels(here.attacks)
    lines = [line(name, label, attrgetter(name)) for name, label in NUMBERS.items()]
    lines += map(recovery, dict.fromkeys(["none", *here.attacks]))
    task, split = where
    return Comparison(
        task,
        split,
        here.attack_set,
        one.entry,
        other.entry,
        one.label,
        other.label,
        (len(one.runs), len(other.runs)),
        tuple(sorted(one.runs)) if one.runs.keys() == other.runs.keys() else (),
        tuple(lines),
        moved_items(replicating, one.trials, other.trials, _worst(lines)) if here.matched_floor is None else (),
        tuple(_of_levels(one.number(attrgetter("score")), other.number(attrgetter("score")))),
        _matched(here, split, [*one.trials, *other.trials]),
    )


def _matched(here: Selection, split: str, trials: Sequence[Trial]) -> str | None:
    if here.matched_floor is None:
        return None
    kinds = {trial.matched.kind for trial in trials if trial.matched}
    return f"U = {here.matched_floor:g} on {matched_on(kinds, split)}"


def _of_levels(one: Replicated, other: Replicated) -> Iterator[str]:
    """How the seeds of attacks and of anchors are counted."""
    for level in sorted({*one.levels, *other.levels}):
        seeds = [set(number.levels.get(level, ())) for number in (one, other)]
        if seeds[0] == seeds[1]:
            yield f"{level.capitalize()} are paired ({len(seeds[0])})."
        else:
            first, second = (len(some) or "not several" for some in seeds)
            yield f"{level.capitalize()} are others ({first} and {second}) and are not paired."


def _worst(lines: Sequence[Line]) -> tuple[str, ...]:
    """The attack under which each entry remembers most."""
    attacks = [line for line in lines if line.attack]
    return max(attacks, key=lambda line: line.one).name, max(attacks, key=lambda line: line.other).name
