"""What a board says of a task's trials, read once: the headline answers of every model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa

from leaderboard.board.schema import ANCHORS, RAW, UNLEARNED, matching
from leaderboard.board.store import Board
from leaderboard.ranking.entry import MatchedHeadlines, Trial
from leaderboard.ranking.headlines import Answers, Headlines, estimate, trial_headlines
from leaderboard.ranking.retention_matching import METRIC, PROBE, chosen, floor_of
from tasks.scoring.estimate import Estimate

_COLUMNS = (
    *("trial", "subject", "attack", "point", "probe", "subset", "matching", "engine", "metric"),
    *("value", "stderr", "n", "headline", "chance", "status", "reason"),
)

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
Source = Board | Mapping[str, pa.Table]
"""A board, or its tables `trials` and `measurements` with one row per key."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements behind the headlines of a task and split.

    Attributes:
        engines: by trial the engines that asked it.
    """

    engines: Mapping[str, set[str]]
    _answers: Mapping[tuple[str | None, str, str, str | None], Rows]
    _weights: Mapping[tuple[str, str, str | None], Estimate]
    _models: dict[tuple[str | None, str, str, str | None], Answers] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Source, task: str, split: str) -> Self:
        answers: defaultdict[tuple[str | None, str, str, str | None], Rows] = defaultdict(list)
        engines: defaultdict[str, set[str]] = defaultdict(set)
        for row in rows(source, "measurements", _headline_rows(task, split), _COLUMNS):
            answers[row["trial"], row["subject"], row["matching"], row["engine"]].append(row)
            engines[row["trial"]].add(row["engine"])
        mixing = rows(source, "measurements", {"task": task, "probe": PROBE, "metric": METRIC}, _COLUMNS)
        weights = {(row["trial"], row["matching"], row["engine"]): estimate(row) for row in mixing}
        return cls(dict(engines), dict(answers), weights)

    def model(self, trial: str | None, subject: str, engine: str | None, name: str = RAW) -> Answers:
        """What one model answered."""
        key = (trial, subject, name, engine)
        if key not in self._models:  # one pair of anchors serves many trials
            self._models[key] = Answers.of(subject, self._answers.get(key, ()))
        return self._models[key]

    def taken(self, trials: Sequence[Row], engines: Collection[str]) -> dict[str, str | None]:
        """By trial the engine whose numbers are taken, one of these; null where there is none to take.

        Of those that measured a trial it is the one that measured most of its entry's seeds, so that a mean over seeds
        is about one engine wherever it can be; then the one that measured most trials; then the first by name. It does
        not depend on any number. A trial that none measured is looked for where its entry's seeds are.
        """
        asked = {row["trial"]: self.engines.get(row["trial"], set()) & set(engines) for row in trials}
        of_entry = Counter((row["entry"], engine) for row in trials for engine in asked[row["trial"]])
        of_all = Counter(engine for row in trials for engine in asked[row["trial"]])

        def most(row: Row) -> str | None:
            order = {
                engine: (-of_entry[row["entry"], engine], -of_all[engine], engine)
                for engine in asked[row["trial"]] or engines
            }
            return min(order, key=order.__getitem__, default=None)

        return {row["trial"]: most(row) for row in trials}

    def floor(self, taken: Mapping[str, str | None], wanted: float) -> float | None:
        """The floor of the mixtures to compare (see `leaderboard.ranking.retention_matching.chosen`).

        Args:
            taken: by trial the engine whose numbers are taken.
        """
        ours = set(taken.items())
        names = {name for trial, _, name, engine in (*self._answers, *self._mixtures()) if (trial, engine) in ours}
        return chosen((floor for name in names if (floor := floor_of(name)) is not None), wanted)

    def trial(self, row: Row, engine: str | None, attacks: Sequence[str], floor: float | None) -> Trial:
        """A trial's headlines, from its own answers to an engine and those of its anchors to the same one.

        Args:
            floor: of its mixture; None for no mixture.
        """
        mixed = self._mixed(row, engine, attacks, matching(floor)) if floor is not None else None
        measured = engine if engine in self.engines.get(row["trial"], ()) else None
        return Trial(row, measured, self._headlines(row, engine, attacks, RAW), mixed)

    def _headlines(self, row: Row, engine: str | None, attacks: Sequence[str], name: str) -> Headlines:
        target, retrained = (self.model(row["anchors"], anchor, engine) for anchor in ANCHORS)
        unlearned = self.model(row["trial"], UNLEARNED, engine, name)
        return trial_headlines(unlearned, target, retrained, row["anchor_ids"], attacks)

    def _mixed(self, row: Row, engine: str | None, attacks: Sequence[str], name: str) -> MatchedHeadlines | None:
        weight = self._weights.get((row["trial"], name, engine))
        if (row["trial"], UNLEARNED, name, engine) in self._answers:
            lost = Estimate.null("the mixing weight was not written down")
            return MatchedHeadlines(self._headlines(row, engine, attacks, name), weight or lost)
        if weight is None or weight.known:
            return None
        missing = Estimate.null(f"utility cannot be matched: {weight.reason}")
        return MatchedHeadlines(Headlines.null(missing, attacks), missing)

    def _mixtures(self) -> Iterable[tuple[str, str, str, str | None]]:
        return ((trial, UNLEARNED, name, engine) for trial, name, engine in self._weights)


def engines_of(source: Source, task: str, split: str) -> set[str]:
    """The engines that measured trials of a task, each of which the task can be ranked by."""
    trials = {row["trial"] for row in rows(source, "trials", {"task": task}, ("trial",))}
    measured = rows(source, "measurements", _headline_rows(task, split), ("trial", "engine"))
    return {row["engine"] for row in measured if row["trial"] in trials}


def _headline_rows(task: str, split: str) -> Row:
    return {"task": task, "split": str(split), "headline": ["knowledge", "utility"]}


def rows(source: Source, table: str, where: Row, names: Sequence[str] = ()) -> Rows:
    """Rows of a table in which each column has its value, or one of its list."""
    if isinstance(source, Board):
        found = source.read(table, where)
        return found.select(list(names) or found.column_names).to_pylist()
    wanted = {name: value if isinstance(value, list) else [value] for name, value in where.items()}
    return [row for row in source[table].to_pylist() if all(row[name] in wanted[name] for name in wanted)]
