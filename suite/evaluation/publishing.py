"""From evaluations to rows on the board, attack by attack: an attack's rows stay, whatever happens to later attacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from leaderboard.board.store import Board
from leaderboard.ranking.headlines import NONE
from suite.evaluation.evaluator import Evaluated, Evaluation, Evaluator
from suite.evaluation.landscape import Reading
from suite.evaluation.scoring import Scorer, SubjectSamples, both_splits
from suite.evaluation.trial_rows import Row
from tasks.scoring import Estimate
from tasks.task import Split


@dataclass
class Publisher:
    """Measures, scores and publishes.

    Attributes:
        trial: the trial id in the rows of subjects other than the anchors.
        board: where rows and samples are written; None to keep the rows in memory only.
        rows: all rows so far.
        items: of the evaluations without an attack so far, what their headlines are the means of.
    """

    evaluator: Evaluator
    scorer: Scorer
    trial: str
    board: Board | None
    rows: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)

    def measure(self, evaluations: Sequence[Evaluation]) -> list[Row]:
        """Run evaluations as one queue in the order of their attacks, publish their rows and return them.

        Raises:
            StageError, CheckpointError, BoardError: something stored is damaged, or the disk is full.
        """
        expected = Counter(e.attack.name for e in evaluations)
        collected: dict[str, list[SubjectSamples]] = {name: [] for name in expected}
        rows: list[Row] = []
        position = {name: i for i, name in enumerate(expected)}
        for evaluated in self.evaluator.run(sorted(evaluations, key=lambda e: position[e.attack.name])):
            if self.board and isinstance(evaluated, Evaluated):
                artifact = evaluated.artifact
                self.board.append_file("samples", artifact.file("samples.parquet"), artifact.key)
            name = evaluated.evaluation.attack.name
            collected[name].append(SubjectSamples.of(evaluated))
            if len(collected[name]) == expected[name]:
                if self.board or name == NONE:
                    items = self.scorer.item_rows(collected[name])
                    self.items += items if name == NONE else []
                    if self.board:
                        self.board.append("items", items)  # before the measurements: whoever reads these finds them
                rows += self.publish(self.scorer.rows([*collected[name], *both_splits(collected[name])], self.trial))
        return rows

    def publish_matching(self, matching: str, split: Split, share: Estimate) -> list[Row]:
        """Publish the share of the unlearned weights at which utility is at the floor, as a row."""
        return self.publish({self.trial: [self.scorer.matching_row(self.trial, matching, split, share)]})

    def publish_landscape(self, readings: Sequence[Reading]) -> list[Row]:
        """Publish readings of the loss landscape around the unlearned weights, as rows."""
        return self.publish({self.trial: self.scorer.landscape_rows(self.trial, readings)})

    def publish(self, by_trial: dict[str | None, list[Row]]) -> list[Row]:
        """Write rows to the board, a file per trial, and return all of them together."""
        keys = ("subject", "attack", "point", "split", "matching", "probe", "metric")
        for trial_rows in by_trial.values():
            trial_rows.sort(key=lambda row: tuple(row[key] for key in keys))
            if self.board:
                self.board.append("measurements", trial_rows)
        rows = [row for trial_rows in by_trial.values() for row in trial_rows]
        self.rows += rows
        return rows
