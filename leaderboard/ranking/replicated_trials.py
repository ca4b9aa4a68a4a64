"""The replicates of trials: of the weights as they are, of matched ones, and read along the curve between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from leaderboard.board.schema import RAW, UNLEARNED, matching
from leaderboard.ranking.comparison import Replicates
from leaderboard.ranking.headlines import HeadlineMeasurements, Headlines
from leaderboard.ranking.levels import Alone
from leaderboard.ranking.measured import Row
from leaderboard.ranking.mixing_curve import Crossing, Unread, beside, read
from leaderboard.ranking.replicated import NoItems, Replicating, finite
from leaderboard.ranking.retention_matching import CURVE
from leaderboard.ranking.trial import MatchedHeadlines, Trial


@dataclass
class ReplicatingTrials(Replicating):
    """Makes the replicates of trials; those of a target at the end of many curves are made once."""

    _targets: dict[tuple[Any, ...], Replicates] = field(default_factory=dict)

    def trial(self, trial: Trial, attacks: Sequence[str], floor: float | None) -> Trial:
        """A trial with its replicates, or with the reason why there are none.

        Args:
            floor: utility of its matched weights; None for none.
        """
        why: list[str] = []

        def replicates(found: Headlines, name: str) -> Replicates | None:
            model = self.measured.model(trial.row["trial"], UNLEARNED, trial.engine, name)
            return self.known(model, found, trial.row, trial.engine, attacks, why)

        raw, matched = replicates(trial.headlines, RAW), trial.matched
        if matched and floor is not None and matched.kind == CURVE:
            try:
                if matched.weight.known:
                    matched = self._read(trial, matched, attacks, floor, raw)
            except NoItems as missing:
                why.append(str(missing))
        elif matched and floor is not None:
            matched = replace(matched, replicates=replicates(matched.headlines, matching(floor)))
        return replace(trial, replicates=raw, matched=matched, not_compared=why[0] if why else None)

    def _read(
        self, trial: Trial, matched: MatchedHeadlines, attacks: Sequence[str], floor: float, raw: Replicates | None
    ) -> MatchedHeadlines:
        """A trial's matched numbers with their replicates, read along its curve.

        Raises:
            NoItems: saying what is missing.
        """
        row, engine, models = trial.row, trial.engine, self.measured.along_curve(trial.row, trial.engine)
        with np.errstate(all="ignore"):
            utility = self.utility_along(row, engine)
            if not matched.headlines.score.known:
                return replace(matched, reading=Crossing.of(utility, floor))
            measured = [
                weight
                for weight in sorted(utility)
                if self.measured.headlines_of(models[weight], row, engine, attacks).score.known
            ]
            found = {1.0: raw} if raw else {}
            for weight in beside(measured, utility, floor):
                if weight == 0:
                    found[weight] = self._of_target(row, engine, attacks)
                elif weight < 1:
                    found[weight] = finite(self.of(models[weight], row, engine, attacks))
            try:
                reading = read(utility, found, floor)
                # With a seed alone the numbers are others, and the weights that they are read at the same.
                sample = {weight: drawn[:1] for weight, drawn in utility.items()}
                levels = {
                    level: {
                        seed: finite(read(sample, self._alone(models, found, trial, attacks, alone), floor).replicates)
                        for seed, alone in seeds.items()
                    }
                    for level, seeds in self.levels([models[weight] for weight in found], row, engine, attacks).items()
                }
            except Unread as why:
                raise NoItems(f"not compared at matched utility: {why}") from None
            return replace(matched, reading=reading, replicates=replace(finite(reading.replicates), levels=levels))

    def _alone(
        self,
        models: Mapping[float, HeadlineMeasurements],
        weights: Iterable[float],
        trial: Trial,
        attacks: Sequence[str],
        alone: Alone,
    ) -> dict[float, Replicates]:
        return {weight: finite(self.of(models[weight], trial.row, trial.engine, attacks, alone)) for weight in weights}

    def _of_target(self, row: Row, engine: str | None, attacks: Sequence[str]) -> Replicates:
        """The headlines of a trial's target, once for all trials with the same seeds of attacks."""
        target = self.measured.along_curve(row, engine)[0.0]
        names = self.measured.attack_names(target, row, engine, attacks).of(None)
        key = (row["anchors"], row["anchor_ids"], engine, *names.items())
        if key not in self._targets:
            self._targets[key] = finite(self.of(target, row, engine, attacks))
        return self._targets[key]
