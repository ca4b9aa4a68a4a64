"""The headlines of models in every replicate of their items, from the tables `measurements` and `items`."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Self

import numpy as np

from leaderboard.board.items import Key, Scored, answers_known, read_items, scored_items
from leaderboard.board.schema import ANCHORS, MOST_SEEDS, RAW, UNLEARNED, pairs_of
from leaderboard.board.store import Board
from leaderboard.ranking.comparison import (
    REPLICATES,
    Cell,
    Cells,
    Replicates,
    Resampling,
    Units,
    replicate,
    smallest_share,
)
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.entry import HEADLINES
from leaderboard.ranking.headlines import LARGEST, NONE, HeadlineMeasurements, HeadlineMetric, Headlines, at_chance
from leaderboard.ranking.levels import TOGETHER, Alone, MeanMeasurements
from leaderboard.ranking.measured import Row, Source, TaskMeasurements
from leaderboard.ranking.synthetic import SYNTHETIC, synthetic_key

MOST_CELLS = 1000
"""Most numbers behind a trial's R, each of which takes 80 kB for a while; the official sets have a hundred."""
MOST_ITEMS = 60_000
"""Most items that are drawn again, over all probes: each takes 8 kB. Entries with the same questions share them."""

ANY = "any"
"""Stands for whichever attack brings back most of an item."""

NO_ITEMS = "not compared: the answers to single questions behind its numbers are not on this board"


class NoItems(Exception):
    """Items of a trial or its anchors are missing, are not the same for all of them, or are too many. Internal: it
    becomes the reason of a missing interval."""


@dataclass
class Replicating:
    """Makes the replicates of models beside a trial's anchors, whose units are made once.

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
    """By the `id` of a model, which is kept as long as what was measured."""

    @classmethod
    def read(
        cls,
        source: Source,
        measured: TaskMeasurements,
        trials: Iterable[tuple[Row, str | None]],
        names: Sequence[str],
        floor: float | None = None,
    ) -> Self:
        """
        Args:
            trials: rows of the table `trials`, each with the engine whose numbers are used.
            names: which weights: `raw`, or matched ones.
            floor: where curves are read; None for none.
        """
        if isinstance(source, Board) and not answers_known(source):
            return cls(measured, {})
        trials = list(trials)
        models = {
            key
            for row, engine in trials
            for key in (
                *((row["trial"], UNLEARNED, engine, name) for name in names),
                *((pair, anchor, engine, RAW) for pair in pairs_of(row["anchors"]) for anchor in ANCHORS),
            )
        }
        wanted: defaultdict[Key, set[float]] = defaultdict(set)
        mixed = (
            model
            for row, engine in trials
            if floor is not None and measured.has_curve(row, engine, floor)
            for model in measured.along_curve(row, engine).values()
        )
        for model in itertools.chain((measured.model(*model) for model in models), mixed):
            for key, value in _keys(model):
                wanted[key].add(value)
        if isinstance(source, Board):
            anchors = {(row["anchors"], engine) for row, engine in trials}
            targets = (measured.anchor(recipe, ANCHORS[0], engine) for recipe, engine in anchors)
            asked = {key for target in targets for key, _ in _keys(target)}
            unmeasured = {synthetic_key(name, key) for key in asked for name in SYNTHETIC}
            return cls(measured, read_items(source, wanted, unmeasured))
        return cls(measured, scored_items(source["items"]) if "items" in source else {})

    def known(
        self,
        model: HeadlineMeasurements,
        found: Headlines,
        row: Row,
        engine: str | None,
        attacks: Sequence[str],
        why: list[str] | None = None,
    ) -> Replicates | None:
        """The replicates of a model with these headlines, or None.

        Args:
            row: a trial with the model's anchors.
            why: where the reason is put if there are none.
        """
        if not found.score.known:
            return None
        try:
            with np.errstate(all="ignore"):  # what is not finite is left out
                levels = {
                    level: {seed: finite(self.of(model, row, engine, attacks, alone)) for seed, alone in seeds.items()}
                    for level, seeds in self.levels([model], row, engine, attacks).items()
                }
                return replace(finite(self.of(model, row, engine, attacks)), levels=levels)
        except NoItems as missing:
            if why is not None:
                why.append(str(missing))
            return None

    def levels(
        self, models: Sequence[HeadlineMeasurements], row: Row, engine: str | None, attacks: Sequence[str]
    ) -> dict[str, dict[str, Alone]]:
        """As `TaskMeasurements.levels`; none of a mean, such as the targets', which is shown and not compared.

        Raises:
            NoItems: there are too many seeds.
        """
        if any(isinstance(model, MeanMeasurements) for model in models):
            return {}
        levels = self.measured.levels(models, row, engine, attacks)
        if any(len(seeds) > MOST_SEEDS for seeds in levels.values()):
            raise NoItems(f"not compared: its attacks have more than {MOST_SEEDS} seeds")
        return levels

    def of(
        self,
        model: HeadlineMeasurements,
        row: Row,
        engine: str | None,
        attacks: Sequence[str],
        alone: Alone = TOGETHER,
    ) -> Replicates:
        """A model's headlines in every replicate. All that they are made of has been measured.

        Args:
            alone: a seed of the attacks or of the anchors that is used alone: then there is the estimate and no
                replicate.

        Raises:
            NoItems: saying what is missing.
        """
        models = self.measured.models(model, row, engine, attacks, alone)
        unlearned, target, retrained = models.unlearned, models.target, models.retrained
        zero_model = None if at_chance(row["anchor_ids"]) else retrained
        metrics, units = self._units_of("knowledge", row["anchors"], engine, target, zero_model, alone)
        excess: dict[Cell, Array] = {}
        answers: list[list[Array]] = [[] for _ in metrics]
        zeros: list[list[Array | float]] = [[] for _ in metrics]
        for attack in dict.fromkeys([NONE, *attacks]):
            for point in [0] if attack == NONE else sorted(unlearned.points(attack)):
                if len(excess) > MOST_CELLS:
                    raise NoItems(f"not compared: more than {MOST_CELLS:,} numbers are behind its robustness")
                for index, metric in enumerate(metrics):
                    draws = units.resamplings[index]
                    zero = self._zero(target, zero_model, attack, point, metric, draws)
                    answer = self._in_order(unlearned, attack, point, metric, draws)
                    excess[Cell(attack, point, index)] = answer - zero
                    answers[index].append(answer)
                    zeros[index].append(zero)
        # Both models are given the attack that is best for each item, or luck alone would bring something back.
        more = [np.maximum if unit >= 0 else np.minimum for unit in units.sample.sum(1)]
        per_item = {
            Cell(ANY, 0, index): reduce(best, answers[index]) - reduce(best, zeros[index])
            for index, best in enumerate(more)
        }
        useful = self.useful(unlearned, row, engine, alone)
        return replicate(Cells.of(units, excess), useful, Cells.of(units, per_item))

    def utility_along(self, row: Row, engine: str | None) -> dict[float, Array]:
        """By mixing weight U in every replicate, of weights whose utility is known; at the target it is 1.

        Raises:
            NoItems: saying what is missing.
        """
        models = self.measured.along_curve(row, engine)
        known = [weight for weight, found in self.measured.utility_along(row, engine).items() if found.known]
        found = {weight: smallest_share(self.useful(models[weight], row, engine)) for weight in known}
        if 0.0 in found and models[0.0] is self.measured.anchor(row["anchors"], ANCHORS[0], engine):
            found[0.0] = np.ones_like(found[0.0])
        if not found or not all(np.isfinite(utility).all() for utility in found.values()):
            raise NoItems("not compared: with other questions, its utility is no number that can be")
        return found

    def useful(self, model: HeadlineMeasurements, row: Row, engine: str | None, alone: Alone = TOGETHER) -> Cells:
        """What a model keeps of utility, item by item."""
        target = self.measured.anchor(row["anchors"], ANCHORS[0], engine, pair=alone.pair)
        metrics, useful_units = self._units_of("utility", row["anchors"], engine, target, None, alone)
        kept: dict[Cell, Array] = {}
        for index, metric in enumerate(metrics):
            draws = useful_units.resamplings[index]
            chance = self._zero(target, None, NONE, 0, metric, draws)
            kept[Cell(NONE, 0, index)] = self._in_order(model, NONE, 0, metric, draws) - chance
        return Cells.of(useful_units, kept)

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
        key = id(zero_model), attack, point, metric
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
            return _mean([self.scored(one, *place) for one, place in parts])
        samples, measured = model.samples.get(cell), model.under(*cell).value
        scored = self.items.get(Key(samples, metric.probe, metric.metric)) if samples else None
        if scored is None or measured is None:
            raise NoItems(NO_ITEMS)
        if not scored.gives(measured):
            raise NoItems(f"not compared: the {model.model} model's answers to {metric.probe} do not give its number")
        return scored


def _mean(parts: Sequence[Scored]) -> Scored:
    """The answers to each item, as means over seeds."""
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


def finite(found: Replicates) -> Replicates:
    """The replicates, if they can be computed with.

    Raises:
        NoItems: a number is not finite, or too large to compute with.
    """
    numbers = (*(getattr(found, name) for name in HEADLINES), *found.recovery.values(), *found.areas.values())
    curves = (height for curve in found.curves.values() for height in curve.values())
    per_item = [] if found.per_item is None else [found.per_item]
    if not all(np.abs(array).max() <= LARGEST for array in (*numbers, *curves, *per_item)):
        raise NoItems("not compared: with other questions, its numbers are none that can be")
    return found
