"""The headlines of trials in every replicate of their items, from the tables `measurements` and `items`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from leaderboard.board.items import Key, Scored, read_items, scored_items
from leaderboard.board.schema import ANCHORS, RAW, UNLEARNED
from leaderboard.board.store import Board
from leaderboard.ranking.comparison import REPLICATES, Cell, Cells, Replicates, Resampling, Units, replicate
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.entry import Trial
from leaderboard.ranking.headlines import NONE, HeadlineMeasurements, HeadlineMetric, Headlines, at_chance
from leaderboard.ranking.measured import Row, Source, TaskMeasurements

NO_ITEMS = "not compared: the answers to single questions behind its numbers are not on this board"


class NoItems(Exception):
    """Items of a trial or its anchors are missing, or are not the same for all of them."""


@dataclass
class Replicating:
    """Makes the replicates of trials. The anchors' units are made once.

    Attributes:
        items: what the board has of the trials' headlines, item by item.
        replicates: how often the items are drawn again.
    """

    measured: TaskMeasurements
    items: Mapping[Key, Scored]
    replicates: int = REPLICATES
    _units: dict[tuple[str, str | None, str | None, bool], tuple[list[HeadlineMetric], Units]] = field(
        default_factory=dict
    )

    @classmethod
    def read(
        cls, source: Source, measured: TaskMeasurements, trials: Iterable[tuple[Row, str | None]], names: Sequence[str]
    ) -> Replicating:
        """
        Args:
            trials: rows of the table `trials`, each with the engine whose numbers are used.
            names: which weights: `raw`, or matched ones.
        """
        models = {
            key
            for row, engine in trials
            for key in (
                *((row["trial"], UNLEARNED, engine, name) for name in names),
                *((row["anchors"], anchor, engine, RAW) for anchor in ANCHORS),
            )
        }
        wanted = {key for model in models for key in _keys(measured.model(*model))}
        if isinstance(source, Board):
            return cls(measured, _items(source, wanted))
        return cls(measured, scored_items(source["items"]) if "items" in source else {})

    def trial(self, trial: Trial, attacks: Sequence[str], matching: str | None) -> Trial:
        """A trial with its replicates, or with the reason why there are none.

        Args:
            matching: name of its matched weights; None for none.
        """
        why: list[str] = []

        def replicates(found: Headlines, name: str) -> Replicates | None:
            if not found.score.known:
                return None
            try:
                return self.of(trial.row, trial.engine, attacks, name)
            except NoItems as missing:
                why.append(str(missing))
                return None

        raw, matched = replicates(trial.headlines, RAW), trial.matched
        if matched and matching:
            matched = replace(matched, replicates=replicates(matched.headlines, matching))
        return replace(trial, replicates=raw, matched=matched, not_compared=why[0] if why else None)

    def of(self, row: Row, engine: str | None, attacks: Sequence[str], name: str) -> Replicates:
        """A trial's headlines in every replicate. All that they are made of has been measured.

        Raises:
            NoItems: saying what is missing.
        """
        unlearned = self.measured.model(row["trial"], UNLEARNED, engine, name)
        target, retrained = (self.measured.model(row["anchors"], anchor, engine) for anchor in ANCHORS)
        zero_model = None if at_chance(row["anchor_ids"]) else retrained
        metrics, units = self._units_of("knowledge", row["anchors"], engine, target, zero_model)
        excess: dict[Cell, Array] = {}
        for attack in dict.fromkeys([NONE, *attacks]):
            for point in sorted(unlearned.points(attack)):
                for index, metric in enumerate(metrics):
                    draws = units.resamplings[index]
                    zero = self._zero(target, zero_model, attack, point, metric, draws)
                    excess[Cell(attack, point, index)] = self._in_order(unlearned, attack, point, metric, draws) - zero
        metrics, useful_units = self._units_of("utility", row["anchors"], engine, target, None)
        kept: dict[Cell, Array] = {}
        for index, metric in enumerate(metrics):
            draws = useful_units.resamplings[index]
            chance = self._zero(target, None, NONE, 0, metric, draws)
            kept[Cell(NONE, 0, index)] = self._in_order(unlearned, NONE, 0, metric, draws) - chance
        return replicate(Cells.of(units, excess), Cells.of(useful_units, kept))

    def _units_of(
        self,
        headline: str,
        anchors: str | None,
        engine: str | None,
        target: HeadlineMeasurements,
        zero_model: HeadlineMeasurements | None,
    ) -> tuple[list[HeadlineMetric], Units]:
        """The metrics of a headline, and the distances between the anchors on them."""
        key = (headline, anchors, engine, zero_model is None)
        if key not in self._units:
            metrics, parts = sorted(target.metrics(headline)), []
            for metric in metrics:
                draws = Resampling.of(metric.probe, self._scored(target, NONE, 0, metric).items, self.replicates)
                zero = self._zero(target, zero_model, NONE, 0, metric, draws)
                parts.append((draws, self._in_order(target, NONE, 0, metric, draws) - zero))
            self._units[key] = metrics, Units.of(parts)
        return self._units[key]

    def _zero(
        self,
        target: HeadlineMeasurements,
        zero_model: HeadlineMeasurements | None,
        attack: str,
        point: int,
        metric: HeadlineMetric,
        draws: Resampling,
    ) -> Array | float:
        """What counts as no knowledge: the retrained model's answers, or chance."""
        if zero_model is None:
            return target.chances.get(metric, 0.0)
        return self._in_order(zero_model, attack, point, metric, draws)

    def _in_order(
        self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric, draws: Resampling
    ) -> Array:
        scored = self._scored(model, attack, point, metric)
        if scored.items is not draws.sorted_items and scored.items != draws.sorted_items:
            raise NoItems(f"not compared: the {model.model} model was asked other questions of {metric.probe}")
        return scored.values[draws.order]

    def _scored(self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric) -> Scored:
        samples = model.samples.get((attack, point, metric))
        scored = self.items.get(Key(samples, metric.probe, metric.metric)) if samples else None
        if scored is None:
            raise NoItems(NO_ITEMS)
        return scored


def _keys(model: HeadlineMeasurements) -> Iterator[Key]:
    for (_, _, metric), samples in model.samples.items():
        yield Key(samples, metric.probe, metric.metric)


def _items(board: Board, wanted: set[Key]) -> dict[Key, Scored]:
    """Items of a board, from its table of them; those that it lacks from samples, if it has any.

    A table of a large board has a row for each of a hundred thousand evaluations, and a query that names them all takes
    far longer than to read the rows and to leave out the others.
    """
    if not wanted:
        return {}
    where = {name: sorted({getattr(key, name) for key in wanted}) for name in ("probe", "metric")}
    rows = board.read("items", where)
    evaluations = pa.array(sorted({key.samples for key in wanted}))
    found = scored_items(rows.filter(pc.is_in(rows["samples"], evaluations)))
    found = {key: scored for key, scored in found.items() if key in wanted}
    if (missing := wanted - found.keys()) and any((board.path / "samples").glob("*.parquet")):
        found |= read_items(board, missing)
    return found
