"""The headlines of trials in every replicate of their items, from the tables `measurements` and `items`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leaderboard.board.items import Key, Scored, read_items, scored_items
from leaderboard.board.schema import ANCHORS, RAW, UNLEARNED
from leaderboard.board.store import Board
from leaderboard.ranking.comparison import REPLICATES, Cell, Cells, Replicates, Resampling, Unit, replicate
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
    _units: dict[tuple[str | None, str | None, HeadlineMetric], Unit] = field(default_factory=dict)

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
            return cls(measured, read_items(source, wanted))
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
        chance = at_chance(row["anchor_ids"])
        metrics = sorted(target.metrics("knowledge"))
        units = [
            self._unit((row["anchors"], engine, metric), target, None if chance else retrained) for metric in metrics
        ]
        excess: dict[Cell, Any] = {}
        for attack in dict.fromkeys([NONE, *attacks]):
            for point in sorted(unlearned.points(attack)):
                for index, (metric, unit) in enumerate(zip(metrics, units, strict=True)):
                    model = self._values(unlearned, attack, point, metric, unit)
                    zero = (
                        target.chances.get(metric, 0.0)
                        if chance
                        else self._values(retrained, attack, point, metric, unit)
                    )
                    excess[Cell(attack, point, index)] = model - zero
        kept: dict[Cell, Any] = {}
        useful = sorted(target.metrics("utility"))
        useful_units = [self._unit((row["anchors"], engine, metric), target, None) for metric in useful]
        for index, (metric, unit) in enumerate(zip(useful, useful_units, strict=True)):
            kept[Cell(NONE, 0, index)] = self._values(unlearned, NONE, 0, metric, unit) - target.chances.get(metric, 0)
        return replicate(Cells.of(units, excess), Cells.of(useful_units, kept))

    def _unit(
        self,
        key: tuple[str | None, str | None, HeadlineMetric],
        target: HeadlineMeasurements,
        retrained: HeadlineMeasurements | None,
    ) -> Unit:
        if key not in self._units:
            metric = key[2]
            items = self._scored(target, NONE, 0, metric).items
            resampling = Resampling.of(metric.probe, items, self.replicates)
            values = self._in_order(target, NONE, 0, metric, resampling)
            zero: Any = target.chances.get(metric, 0.0)
            if retrained is not None:
                zero = self._in_order(retrained, NONE, 0, metric, resampling)
            self._units[key] = Unit.of(resampling, values, zero)
        return self._units[key]

    def _values(self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric, unit: Unit) -> Any:
        return self._in_order(model, attack, point, metric, unit.resampling)

    def _in_order(
        self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric, resampling: Resampling
    ) -> Any:
        scored = self._scored(model, attack, point, metric)
        if scored.items != resampling.sorted_items:
            raise NoItems(f"not compared: the {model.model} model was asked other questions of {metric.probe}")
        return scored.values[resampling.order]

    def _scored(self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric) -> Scored:
        samples = model.samples.get((attack, point, metric))
        scored = self.items.get(Key(samples, metric.probe, metric.metric)) if samples else None
        if scored is None:
            raise NoItems(NO_ITEMS)
        return scored


def _keys(model: HeadlineMeasurements) -> Iterator[Key]:
    for (_, _, metric), samples in model.samples.items():
        yield Key(samples, metric.probe, metric.metric)
