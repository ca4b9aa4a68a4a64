"""The measurements of a task's trials, read from a board once: the headline metrics of every model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from leaderboard.board.schema import ANCHORS, RANDOM_CHANGE, RAW, UNLEARNED, matching, pairs_of
from leaderboard.board.store import Board
from leaderboard.ranking.headlines import (
    MEASURED,
    HeadlineMeasurements,
    HeadlineMetric,
    Headlines,
    Measured,
    trial_headlines,
    utility_share,
)
from leaderboard.ranking.levels import TOGETHER, Alone, AttackNames, MeanMeasurements, Models, mean_over, seeds_by_level
from leaderboard.ranking.mixing_curve import read_plain
from leaderboard.ranking.retention_matching import (
    CURVE,
    METRIC,
    PROBE,
    chosen_floor,
    curve_name,
    floor_of,
    mixed_name,
    of_curve,
    share_of,
)
from leaderboard.ranking.trial import MatchedHeadlines, Trial
from tasks.scoring.estimate import Estimate

_COLUMNS = (
    *("trial", "subject", "split", "matching", "engine", "anchor_ids", "headline", "probe", "subset", "metric"),
    *MEASURED,
)

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
Source = Board | Mapping[str, pa.Table]
"""A board, or its tables `trials` and `measurements` with one row per key."""


@dataclass(frozen=True, slots=True)
class TaskMeasurements:
    """The measurements behind the headlines of a task and split.

    A trial's measurements belong to the anchors of its row: where the weights in a folder were replaced, the same trial
    was measured with other ones, and those measurements are left out.

    Attributes:
        engines: by trial the engines that measured it.
        left_out: by trial the number of measurements with other anchors.
    """

    engines: Mapping[str, set[str]]
    left_out: Mapping[str, int]
    _rows: Mapping[tuple[str | None, str, str, str | None], list[Measured]]
    _weights: Mapping[tuple[str, str, str | None], Estimate]
    _shares: Mapping[tuple[str | None, str | None], set[float]]
    _models: dict[tuple[str | None, str, str, str | None], HeadlineMeasurements] = field(default_factory=dict)
    _anchors: dict[tuple[Any, ...], HeadlineMeasurements] = field(default_factory=dict)
    _names: dict[tuple[Any, ...], AttackNames] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Source, task: str, split: str) -> Self:
        by_model: defaultdict[tuple[str | None, str, str, str | None], list[Measured]] = defaultdict(list)
        engines: defaultdict[str, set[str]] = defaultdict(set)
        weights: dict[tuple[str, str, str | None], Estimate] = {}
        shares: defaultdict[tuple[str | None, str | None], set[float]] = defaultdict(set)
        left_out: Counter[str] = Counter()
        trials = rows(source, "trials", {"task": task}, ("trial", "anchor_ids"))
        anchors = {row["trial"]: row["anchor_ids"] for row in trials}
        of_weights = {"task": task, "probe": PROBE, "metric": METRIC}
        metrics: dict[tuple[str, ...], HeadlineMetric] = {}  # one object of each
        for row in _tuples(source, "measurements", [_headline_rows(task, split), of_weights], _COLUMNS):
            trial, subject, asked, name, engine, anchor_ids = row[:6]
            here = anchors.get(trial)
            if here and anchor_ids and anchor_ids != here:
                left_out[trial] += 1
                continue
            metric = metrics.get(row[6:10]) or metrics.setdefault(row[6:10], HeadlineMetric(*row[6:10]))
            measured = Measured.of(metric, *row[10:])
            if (metric.probe, metric.metric) == (PROBE, METRIC):
                # One share was found on dev for both splits; a curve belongs to the split that it was measured on.
                if asked == split or not of_curve(name):
                    weights[trial, name, engine] = measured.estimate
            else:
                by_model[trial, subject, name, engine].append(measured)
                engines[trial].add(engine)
        for trial, subject, name, engine in by_model:
            if subject == UNLEARNED and (share := share_of(name)) is not None:
                shares[trial, engine].add(share)
        return cls(dict(engines), dict(left_out), dict(by_model), weights, dict(shares))

    def model(self, trial: str | None, subject: str, engine: str | None, name: str = RAW) -> HeadlineMeasurements:
        """The headline measurements of one model."""
        key = (trial, subject, name, engine)
        if key not in self._models:  # one pair of anchors serves many trials
            self._models[key] = HeadlineMeasurements.of(subject, self._rows.get(key, ()))
        return self._models[key]

    def models(
        self,
        model: HeadlineMeasurements,
        row: Row,
        engine: str | None,
        attacks: Sequence[str],
        alone: Alone = TOGETHER,
    ) -> Models:
        """A model and a trial's anchors, as means over seeds of attacks and of anchors.

        The seeds are those that the trial's model was attacked with, whatever the anchors went through for others.

        Args:
            model: the trial's, or another one on its scale; of a mean over seeds nothing is left to be averaged.
            alone: a seed that is used alone.
        """
        names = self.attack_names(model, row, engine, attacks).of(alone.attack)
        mean = model if isinstance(model, MeanMeasurements) else mean_over([model], names)
        return Models(mean, *(self.anchor(row["anchors"], anchor, engine, names, alone.pair) for anchor in ANCHORS))

    def attack_names(
        self, model: HeadlineMeasurements, row: Row, engine: str | None, attacks: Sequence[str]
    ) -> AttackNames:
        """What stands for the attacks of a set in the rows of a model on a trial's scale."""
        key = (tuple(attacks), self.model(row["trial"], UNLEARNED, engine).attacks, model.attacks)
        if key not in self._names:  # nearly all trials of a board have the same
            self._names[key] = AttackNames(*key)
        return self._names[key]

    def anchor(
        self,
        recipe: str | None,
        anchor: str,
        engine: str | None,
        names: Mapping[str, Sequence[str]] | None = None,
        pair: int | None = None,
    ) -> HeadlineMeasurements:
        """The measurements of an anchor, as means over its seeds and the attacks'.

        Args:
            recipe: of all pairs of anchors, as in the column `anchors`.
            names: by attack those in rows that stand for it.
            pair: the place of a pair that is used alone.
        """
        names = names or {}
        key = (recipe, anchor, engine, pair, *names.items())
        if key not in self._anchors:
            pairs = pairs_of(recipe) if pair is None else pairs_of(recipe)[pair : pair + 1]
            self._anchors[key] = mean_over([self.model(one, anchor, engine) for one in pairs], names)
        return self._anchors[key]

    def levels(
        self, models: Iterable[HeadlineMeasurements], row: Row, engine: str | None, attacks: Sequence[str]
    ) -> dict[str, dict[str, Alone]]:
        """By level the seeds of a trial's attacks and anchors, where there are several: those that all models have."""
        names = [self.attack_names(model, row, engine, attacks) for model in models]
        return seeds_by_level(names, len(pairs_of(row["anchors"])))

    def chosen_engines(self, trials: Sequence[Row], engines: Collection[str]) -> dict[str, str | None]:
        """By trial the engine whose numbers are used, one of `engines`; None where no engine measured anything.

        Of the engines that measured a trial it is the one that measured most of its entry's seeds, so that a mean over
        seeds is from one engine wherever possible; then the one that measured most trials; then the first by name. The
        choice depends on no number. A trial that no engine measured gets the engine of its entry's other seeds.
        """
        measuring = {row["trial"]: self.engines.get(row["trial"], set()) & set(engines) for row in trials}
        entry_counts = Counter((row["entry"], engine) for row in trials for engine in measuring[row["trial"]])
        total_counts = Counter(engine for row in trials for engine in measuring[row["trial"]])

        def choice(row: Row) -> str | None:
            order = {
                engine: (-entry_counts[row["entry"], engine], -total_counts[engine], engine)
                for engine in measuring[row["trial"]] or engines
            }
            return min(order, key=order.__getitem__, default=None)

        return {row["trial"]: choice(row) for row in trials}

    def floor(self, engines: Mapping[str, str | None], wanted: float) -> float | None:
        """The floor of the matched weights to compare (see `leaderboard.ranking.retention_matching.chosen_floor`).

        Args:
            engines: by trial the engine whose numbers are used.
        """
        chosen = set(engines.items())
        names = {name for trial, _, name, engine in (*self._rows, *self._matched_keys()) if (trial, engine) in chosen}
        return chosen_floor((floor for name in names if (floor := floor_of(name)) is not None), wanted)

    def trial(self, row: Row, engine: str | None, attacks: Sequence[str], floor: float | None) -> Trial:
        """A trial's headlines, from an engine's measurements of it and of its anchors. They are not replicated yet.

        Args:
            floor: utility floor of its matched weights; None for none.
        """
        matched = self._matched(row, engine, attacks, floor) if floor is not None else None
        measured = engine if engine in self.engines.get(row["trial"], ()) else None
        left_out = self.left_out.get(row["trial"], 0)
        return Trial(row, measured, self._headlines(row, engine, attacks, RAW), matched, left_out)

    def _headlines(self, row: Row, engine: str | None, attacks: Sequence[str], name: str) -> Headlines:
        return self.headlines_of(self.model(row["trial"], UNLEARNED, engine, name), row, engine, attacks)

    def along_curve(self, row: Row, engine: str | None) -> dict[float, HeadlineMeasurements]:
        """By mixing weight the models between a trial's target and its unlearned model, the ends among them."""
        shares = sorted(self._shares.get((row["trial"], engine), ()))
        return {
            0.0: self.model(pairs_of(row["anchors"])[0], ANCHORS[0], engine),
            **{share: self.model(row["trial"], UNLEARNED, engine, mixed_name(share)) for share in shares},
            1.0: self.model(row["trial"], UNLEARNED, engine),
        }

    def has_curve(self, row: Row, engine: str | None, floor: float) -> bool:
        """Whether a trial's curve was measured to be read at a floor."""
        return (row["trial"], curve_name(floor), engine) in self._weights

    def utility_along(self, row: Row, engine: str | None) -> dict[float, Estimate]:
        """By mixing weight the utility of the models of `along_curve`."""
        target = self.anchor(row["anchors"], ANCHORS[0], engine)
        models = self.along_curve(row, engine)
        utility = {weight: utility_share(model, target) for weight, model in models.items()}
        if utility[0.0].known and models[0.0] is target:
            utility[0.0] = Estimate(1.0, 0.0, utility[0.0].n)  # the target keeps all of its own
        return utility

    def _matched(self, row: Row, engine: str | None, attacks: Sequence[str], floor: float) -> MatchedHeadlines | None:
        if self.has_curve(row, engine, floor):
            return self._read(row, engine, attacks, floor)
        name = matching(floor)
        weight = self._weights.get((row["trial"], name, engine))
        if (row["trial"], UNLEARNED, name, engine) in self._rows:
            unknown = Estimate.null("the mixing weight was not written down")
            return MatchedHeadlines(self._headlines(row, engine, attacks, name), weight or unknown)
        if weight is None or weight.known:
            return None
        missing = Estimate.null(f"utility cannot be matched: {weight.reason}")
        return MatchedHeadlines(Headlines.null(missing, attacks), missing)

    def headlines_of(
        self, model: HeadlineMeasurements, row: Row, engine: str | None, attacks: Sequence[str]
    ) -> Headlines:
        """The headlines of a model beside a trial's anchors."""
        found = self.models(model, row, engine, attacks)
        return trial_headlines(found.unlearned, found.target, found.retrained, row["anchor_ids"], attacks)

    def _read(self, row: Row, engine: str | None, attacks: Sequence[str], floor: float) -> MatchedHeadlines:
        models = self.along_curve(row, engine)
        read = read_plain(
            self.utility_along(row, engine),
            lambda weight: self.headlines_of(models[weight], row, engine, attacks),
            attacks,
            floor,
        )
        return MatchedHeadlines(read.headlines, read.weight, kind=CURVE, barrier=read.barrier)

    def _matched_keys(self) -> Iterable[tuple[str, str, str, str | None]]:
        return ((trial, UNLEARNED, name, engine) for trial, name, engine in self._weights)


def engines_of(source: Source, task: str, split: str) -> set[str]:
    """The engines that measured trials of a task; the task can be ranked by each of them."""
    trials = {
        row["trial"]
        for row in rows(source, "trials", {"task": task}, ("trial", "optimizer"))
        if row["optimizer"] != RANDOM_CHANGE
    }
    measured = rows(source, "measurements", _headline_rows(task, split), ("trial", "engine"))
    return {row["engine"] for row in measured if row["trial"] in trials}


def _headline_rows(task: str, split: str) -> Row:
    return {"task": task, "split": str(split), "headline": ["knowledge", "utility"]}


def rows(source: Source, table: str, where: Row | Sequence[Row], names: Sequence[str] = ()) -> Rows:
    """Rows of a table that match `where`, or one of several: by column a value, or a list of allowed values."""
    if isinstance(source, Board):
        return as_dicts(source.read(table, where, names or None))
    choices = [where] if isinstance(where, Mapping) else where
    allowed = [{name: _listed(value) for name, value in choice.items()} for choice in choices]
    return [
        row
        for row in as_dicts(source[table])
        if any(all(row[name] in values for name, values in choice.items()) for choice in allowed)
    ]


def _tuples(source: Source, table: str, where: Row | Sequence[Row], names: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    """As `rows`, with the values in the order of the names: of measurements there are many."""
    if isinstance(source, Board):
        return zip(*map(_values, source.read(table, where, names).select(names).columns), strict=True)
    return (tuple(row.get(name) for name in names) for row in rows(source, table, where))


def as_dicts(table: pa.Table) -> Rows:
    """As `Table.to_pylist`, in a fraction of its time and memory: equal texts are one object."""
    columns = [_values(column) for column in table.columns]
    names = table.column_names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_string(column.type):
        return column.to_pylist()
    values: list[Any] = []
    for chunk in column.dictionary_encode("encode").chunks:  # with null as one of the texts
        values += np.array(chunk.dictionary.to_pylist(), dtype=object)[np.from_dlpack(chunk.indices)].tolist()
    return values


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
