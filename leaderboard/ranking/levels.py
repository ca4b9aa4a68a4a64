"""Seeds of attacks and of anchors: models' measurements as means over them, or with one of them alone.

An attack that draws at random may have been carried out with several seeds, in rows that differ in the seed in the
attack's name, and a trial may have several pairs of anchors, one for each seed they were trained with. Everything that
follows from measurements is computed from their means, so it need not know of seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leaderboard.ranking.headlines import NONE, HeadlineMeasurements, HeadlineMetric
from tasks import attack_seed
from tasks.scoring.estimate import Estimate

ATTACK_SEEDS, ANCHOR_SEEDS = "attack seeds", "anchor seeds"
"""The levels, beside items and runs."""

Cell = tuple[str, int, HeadlineMetric]
"""An attack as in rows, a point on its curve, and a metric."""


@dataclass(frozen=True, slots=True)
class Alone:
    """One seed of a level, in place of the mean over all; None for the mean.

    Attributes:
        attack: the seed of all attacks that have several.
        pair: the place of the pair of anchors.
    """

    attack: int | None = None
    pair: int | None = None


TOGETHER = Alone()


@dataclass(frozen=True, slots=True)
class Models:
    """The measurements that a trial's headlines are computed from."""

    unlearned: HeadlineMeasurements
    target: HeadlineMeasurements
    retrained: HeadlineMeasurements


@dataclass(frozen=True)
class MeanMeasurements(HeadlineMeasurements):
    """The mean over several measurements of each number.

    Attributes:
        parts: by cell the measurements that its number is the mean of.
    """

    parts: Mapping[Cell, tuple[tuple[HeadlineMeasurements, Cell], ...]] = field(default_factory=dict)


class AttackNames:
    """By attack of a set the names in rows that stand for it, by their seeds.

    An attack that a model was measured under with its own seed alone stands for itself, as does one that was not
    measured. A name that is itself in the set stands for no other of the set.
    """

    def __init__(self, attacks: Iterable[str], measured: Collection[str], *others: Collection[str]) -> None:
        """
        Args:
            measured: the names in the model's rows.
            others: those of models that an attack's seeds are those of as well, as far as they were measured under it.
        """
        attacks = dict.fromkeys(attacks)
        by_rest: defaultdict[str, dict[int, str]] = defaultdict(dict)
        for name in sorted(measured):
            rest, seed = attack_seed(name)
            by_rest[rest].setdefault(seed, name)
        self._names: dict[str, dict[int, str]] = {}
        for attack in attacks:
            rest, own = attack_seed(attack)
            found = {seed: name for seed, name in by_rest[rest].items() if name == attack or name not in attacks}
            for other in others:
                found = {seed: name for seed, name in found.items() if name in other} or found
            self._names[attack] = dict(sorted(found.items())) or {own: attack}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that all attacks have that have several; none where that is fewer than two."""
        several = [set(names) for names in self._names.values() if len(names) > 1]
        common = sorted(set.intersection(*several)) if several else []
        return tuple(common) if len(common) > 1 else ()

    def of(self, seed: int | None) -> dict[str, tuple[str, ...]]:
        """The names that count: with every seed, or of attacks that have several the one with this seed."""
        return {
            attack: tuple(names.values()) if seed is None or len(names) == 1 else (names[seed],)
            for attack, names in self._names.items()
        }


def seeds_by_level(names: Sequence[AttackNames], pairs: int) -> dict[str, dict[str, Alone]]:
    """By level the seeds, where there are several.

    Args:
        names: of several models, whose common seeds are meant.
        pairs: of anchors.
    """
    common = sorted(set.intersection(*(set(one.seeds) for one in names)))
    found = {
        ATTACK_SEEDS: {f"attack seed {seed}": Alone(attack=seed) for seed in common},
        ANCHOR_SEEDS: {f"anchors {pair + 1}": Alone(pair=pair) for pair in range(pairs)},
    }
    return {level: alone for level, alone in found.items() if len(alone) > 1}


def mean_over(models: Sequence[HeadlineMeasurements], names: Mapping[str, Sequence[str]]) -> HeadlineMeasurements:
    """A model's measurements as means over several models, such as the pairs of anchors, and over seeds of attacks.

    Args:
        names: by attack those in rows that stand for it. Other attacks are left out.
    """
    first = models[0]
    if len(models) == 1 and all(tuple(same) == (attack,) for attack, same in names.items()):
        return first
    names = {NONE: (NONE,), **names}
    under: defaultdict[str, set[tuple[int, HeadlineMetric]]] = defaultdict(set)
    for model in models:
        for attack, point, metric in model.estimates:
            under[attack].add((point, metric))
    parts: dict[Cell, tuple[tuple[HeadlineMeasurements, Cell], ...]] = {}
    for attack, same in names.items():
        for point, metric in set().union(*(under[name] for name in same)):
            parts[attack, point, metric] = tuple((model, (name, point, metric)) for model in models for name in same)
    return MeanMeasurements(
        first.model,
        {cell: _mean([model.under(*place) for model, place in of]) for cell, of in parts.items()},
        {metric: chance for model in models for metric, chance in model.chances.items()},
        _failed(models, names),
        {cell: id_ for cell, [(model, place), *_] in parts.items() if (id_ := model.samples.get(place))},
        parts,
    )


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates on the same items: their errors are added, as they depend on each other."""
    values: list[float] = []
    for one in estimates:
        if one.value is None:
            return one
        values.append(one.value)
    count = len(estimates)
    value = math.fsum(values) / count
    known = all(one.stderr is not None for one in estimates)
    error = math.fsum(one.error for one in estimates) / count if known else None
    return Estimate(value, error, min(one.n for one in estimates))


def _failed(models: Sequence[HeadlineMeasurements], names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The attacks that failed with one seed or more, with the message of the first."""
    failed: dict[str, str] = {}
    for attack, same in names.items():
        for name in same:
            why = next((model.failed[name] for model in models if name in model.failed), None)
            if why is not None:
                failed.setdefault(attack, why if len(same) == 1 else f"seed {attack_seed(name)[1]}: {why}")
    return failed
