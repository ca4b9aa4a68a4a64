"""A trial's curve from the target to its unlearned model: utility along it, and attacks where it is at the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from leaderboard.board import schema
from leaderboard.board.items import scored_items
from leaderboard.board.schema import UNLEARNED
from leaderboard.ranking.comparison.resampling import Array
from leaderboard.ranking.measured import TaskMeasurements
from leaderboard.ranking.mixing_curve import Unread, plain_crossing
from leaderboard.ranking.replicated import NoItems, Replicating
from leaderboard.ranking.retention_matching import curve_name, mixed_name
from suite.evaluation.evaluator import Evaluation
from suite.evaluation.retention_matching import HALVINGS, QUARTERS, mixed_weights, next_weight, weights_to_attack
from suite.evaluation.trial_rows import Row
from suite.models.checkpoints import KeyedCheckpoint
from suite.training.anchors import Anchors
from suite.trials.harness import Harness
from tasks.scoring import Estimate
from tasks.task import Split

DRAWS = 400
"""Draws of the questions by which weights are chosen: the first of those that the board makes."""


@dataclass(frozen=True)
class MixingCurve:
    """Measures what the board reads at a floor of utility (`leaderboard.ranking.mixing_curve`).

    Attributes:
        trial: its row.
        floor: utility at which numbers are read, a share of the target's.
    """

    harness: Harness
    trial: Row
    anchors: Anchors
    unlearned: KeyedCheckpoint
    floor: float

    def measure(self, splits: Sequence[Split]) -> tuple[list[Row], list[Evaluation]]:
        """Measures weights on the way without an attack, as many as show where utility crosses the floor.

        Where the unlearned model's own utility is not known there is nothing to look for.

        Returns:
            the rows, and the attacked evaluations that are to be made.
        """
        of_ends = {split: self._measured(split)[0].utility_along(self.trial, self._engine)[1.0] for split in splits}
        known = [split for split in splits if of_ends[split].known]
        rows = self.harness.measure([one for share in QUARTERS for one in self._unattacked(share, known)])
        attacked: list[Evaluation] = []
        for split in splits:
            if split not in known:
                self._publish(split, Estimate.null(of_ends[split].reason or "utility is not known"))
                continue
            plain, utility = self._utility(split)
            for _ in range(HALVINGS):
                share = next_weight(utility, self.floor) if plain.known else None
                if share is None:
                    break
                rows += self.harness.measure(self._unattacked(share, [split]))
                plain, utility = self._utility(split)
            self._publish(split, plain)
            for share in () if plain.value is None else weights_to_attack(utility, plain.value, self.floor):
                models = {UNLEARNED: mixed_weights(share, self.unlearned, self.anchors)}
                attacked += self.harness.attacked(models, mixed_name(share), [split])
        return rows, attacked

    def _unattacked(self, share: float, splits: Sequence[Split]) -> list[Evaluation]:
        models = {UNLEARNED: mixed_weights(share, self.unlearned, self.anchors)}
        return self.harness.unattacked(models, mixed_name(share), splits)

    def _publish(self, split: Split, crossing: Estimate) -> None:
        self.harness.publisher.publish_matching(curve_name(self.floor), split, crossing)

    @property
    def _engine(self) -> str:
        return self.harness.engine.name

    def _measured(self, split: Split) -> tuple[TaskMeasurements, Mapping[str, pa.Table]]:
        """What was measured so far, as a board's tables."""
        publisher = self.harness.publisher
        found = {"trials": [self.trial], "measurements": publisher.rows, "items": publisher.items}
        tables = {name: schema.to_arrow(name, rows) for name, rows in found.items()}
        return TaskMeasurements.read(tables, self.trial["task"], split), tables

    def _utility(self, split: Split) -> tuple[Estimate, dict[float, Array]]:
        """Where the plain utility crosses the floor, and utility by mixing weight with other questions."""
        measured, tables = self._measured(split)
        utility = measured.utility_along(self.trial, self._engine)
        try:
            plain = Estimate(plain_crossing(utility, self.floor), None, 1)
        except Unread as why:
            return Estimate.null(str(why)), {}
        try:
            drawn = Replicating(measured, scored_items(tables["items"]), DRAWS).utility_along(self.trial, self._engine)
        except NoItems:  # then the board draws none either, and reads the estimate alone
            drawn = {weight: np.array([one.value]) for weight, one in utility.items() if one.value is not None}
        return plain, drawn
