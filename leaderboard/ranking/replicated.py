"""The headlines of trials in every replicate of their items, from the tables `measurements` and `items`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from leaderboard.board.items import Key, Scored, read_items, scored_items
from leaderboard.board.schema import ANCHORS, MOST_SEEDS, RAW, UNLEARNED, pairs_of
from leaderboard.board.store import Board
from leaderboard.ranking.comparison import REPLICATES, Cell, Cells, Replicates, Resampling, Units, replicate
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.entry import HEADLINES, Trial
from leaderboard.ranking.headlines import LARGEST, NONE, HeadlineMeasurements, HeadlineMetric, Headlines, at_chance
from leaderboard.ranking.levels import TOGETHER, Alone, MeanMeasurements
from leaderboard.ranking.measured import Row, Source, TaskMeasurements

MOST_CELLS = 1000
"""Most numbers behind a trial's R, each of which takes 80 kB for a while; the official sets have a hundred."""
MOST_ITEMS = 60_000
"""Most items that are drawn again, over all probes: each takes 16 kB. Entries with the same questions share them."""

NO_ITEMS = "not compared: the answers to single questions behind its numbers are not on this board"


class NoItems(Exception):
    """Items of a trial or its anchors are missing, are not the same for all of them, or are too many."""


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
    _units: dict[tuple[Any, ...], tuple[list[HeadlineMetric], Units]] = field(default_factory=dict)
    _drawn: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    _zeros: dict[tuple[int, str, int, HeadlineMetric], Array] = field(default_factory=dict)

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
                *((pair, anchor, engine, RAW) for pair in pairs_of(row["anchors"]) for anchor in ANCHORS),
            )
        }
        wanted: defaultdict[Key, set[float]] = defaultdict(set)
        for model in models:
            for key, value in _keys(measured.model(*model)):
                wanted[key].add(value)
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
                with np.errstate(all="ignore"):  # what is not finite is left out
                    return self._with_levels(trial, attacks, name)
            except NoItems as missing:
                why.append(str(missing))
                return None

        raw, matched = replicates(trial.headlines, RAW), trial.matched
        if matched and matching:
            matched = replace(matched, replicates=replicates(matched.headlines, matching))
        return replace(trial, replicates=raw, matched=matched, not_compared=why[0] if why else None)

    def _with_levels(self, trial: Trial, attacks: Sequence[str], name: str) -> Replicates:
        """A trial's replicates, and its estimates with each seed of the attacks and of the anchors alone."""
        of = trial.row, trial.engine, attacks, name
        if max(map(len, self.measured.levels(*of).values()), default=0) > MOST_SEEDS:
            raise NoItems(f"not compared: its attacks have more than {MOST_SEEDS} seeds")
        levels = {
            level: {seed: _finite(self.of(*of, alone)) for seed, alone in seeds.items()}
            for level, seeds in self.measured.levels(*of).items()
        }
        return replace(_finite(self.of(*of)), levels=levels)

    def of(
        self, row: Row, engine: str | None, attacks: Sequence[str], name: str, alone: Alone = TOGETHER
    ) -> Replicates:
        """A trial's headlines in every replicate. All that they are made of has been measured.

        Args:
            alone: a seed of the attacks or of the anchors that is used alone: then there is the estimate and no
                replicate.

        Raises:
            NoItems: saying what is missing.
        """
        models = self.measured.models(row, engine, attacks, name, alone)
        unlearned, target, retrained = models.unlearned, models.target, models.retrained
        zero_model = None if at_chance(row["anchor_ids"]) else retrained
        metrics, units = self._units_of("knowledge", row["anchors"], engine, target, zero_model, alone)
        excess: dict[Cell, Array] = {}
        for attack in dict.fromkeys([NONE, *attacks]):
            for point in [0] if attack == NONE else sorted(unlearned.points(attack)):
                if len(excess) > MOST_CELLS:
                    raise NoItems(f"not compared: more than {MOST_CELLS:,} numbers are behind its robustness")
                for index, metric in enumerate(metrics):
                    draws = units.resamplings[index]
                    zero = self._zero(target, zero_model, attack, point, metric, draws)
                    excess[Cell(attack, point, index)] = self._in_order(unlearned, attack, point, metric, draws) - zero
        metrics, useful_units = self._units_of("utility", row["anchors"], engine, target, None, alone)
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
        alone: Alone,
    ) -> tuple[list[HeadlineMetric], Units]:
        """The metrics of a headline, and the distances between the anchors on them."""
        key = (headline, anchors, engine, zero_model is None, alone.pair, alone == TOGETHER)
        if key not in self._units:
            metrics, parts = sorted(target.metrics(headline)), []
            for metric in metrics:
                items = self.scored(target, NONE, 0, metric).items
                self._afford(metric.probe, items)
                draws = Resampling.of(metric.probe, items, self.replicates)
                draws = draws if alone == TOGETHER else draws.sample
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
        key = id(zero_model), attack, point, metric  # models are kept as long as what was measured
        if key not in self._zeros:
            self._zeros[key] = self._in_order(zero_model, attack, point, metric, draws)
        return self._zeros[key]

    def _afford(self, probe: str, items: tuple[str, ...]) -> None:
        """Counts items that are drawn again.

        Raises:
            NoItems: there is no memory for more.
        """
        drawn = self._drawn | {(probe, items)}
        if sum(len(items) for _, items in drawn) > MOST_ITEMS:
            raise NoItems(f"not compared: more than {MOST_ITEMS:,} questions in all would be drawn again")
        self._drawn = drawn

    def _in_order(
        self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric, draws: Resampling
    ) -> Array:
        scored = self.scored(model, attack, point, metric)
        if scored.items is not draws.sorted_items and scored.items != draws.sorted_items:
            raise NoItems(f"not compared: the {model.model} model was asked other questions of {metric.probe}")
        return scored.values[draws.order]

    def scored(self, model: HeadlineMeasurements, attack: str, point: int, metric: HeadlineMetric) -> Scored:
        """A model's answers, item by item.

        Raises:
            NoItems: saying what is missing.
        """
        cell = attack, point, metric
        if isinstance(model, MeanMeasurements) and len(parts := model.parts.get(cell, ())) > 1:
            return self._mean([self.scored(one, *place) for one, place in parts])
        samples, measured = model.samples.get(cell), model.under(*cell).value
        scored = self.items.get(Key(samples, metric.probe, metric.metric)) if samples else None
        if scored is None or measured is None:
            raise NoItems(NO_ITEMS)
        if not scored.gives(measured):
            raise NoItems(f"not compared: the {model.model} model's answers to {metric.probe} do not give its number")
        return scored

    def _mean(self, parts: Sequence[Scored]) -> Scored:
        items = parts[0].items
        if any(part.items is not items and part.items != items for part in parts):
            raise NoItems("not compared: with other seeds, a model was asked other questions")
        values = np.mean([part.values for part in parts], axis=0)
        return Scored(items, values, float(values.mean()))


def _keys(model: HeadlineMeasurements) -> Iterator[tuple[Key, float]]:
    """The rows of items that a model's measurements name, with these measurements."""
    for cell, samples in model.samples.items():
        value = model.estimates[cell].value
        if value is not None:
            yield Key(samples, cell[2].probe, cell[2].metric), value


def _finite(found: Replicates) -> Replicates:
    """The replicates, if they can be computed with.

    Raises:
        NoItems: a number is not finite, or too large to compute with.
    """
    numbers = (*(getattr(found, name) for name in HEADLINES), *found.recovery.values(), *found.areas.values())
    curves = (height for curve in found.curves.values() for height in curve.values())
    if not all(np.abs(array).max() <= LARGEST for array in (*numbers, *curves)):
        raise NoItems("not compared: with other questions, its numbers are none that can be")
    return found
