"""From evaluations to rows on the board, attack by attack: what is measured stands, whatever becomes of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from leaderboard.board.store import Board
from suite.evaluation.evaluator import Evaluated, Evaluation, Evaluator
from suite.evaluation.landscape import Reading
from suite.evaluation.retention_matching import RetentionMatch
from suite.evaluation.scoring import Answered, Scorer, both_splits
from suite.evaluation.trial_rows import Row


@dataclass
class Publisher:
    """Measures, scores and publishes.

    Attributes:
        trial: id that rows of subjects other than the anchors stand under.
        board: where rows and samples go; None to keep them here alone.
        rows: everything measured so far.
    """

    evaluator: Evaluator
    scorer: Scorer
    trial: str
    board: Board | None
    rows: list[Row] = field(default_factory=list)

    def measure(self, evaluations: Sequence[Evaluation]) -> list[Row]:
        """The rows of some evaluations, asked as one queue in the order of their attacks.

        Raises:
            StageError, CheckpointError, BoardError: something stored is damaged, or the disk is full.
        """
        awaited = Counter(e.attack.name for e in evaluations)
        answered: dict[str, list[Answered]] = {name: [] for name in awaited}
        rows: list[Row] = []
        place = {name: i for i, name in enumerate(awaited)}
        for evaluated in self.evaluator.run(sorted(evaluations, key=lambda e: place[e.attack.name])):
            if self.board and isinstance(evaluated, Evaluated):
                artifact = evaluated.artifact
                self.board.append_file("samples", artifact.file("samples.parquet"), artifact.key)
            name = evaluated.evaluation.attack.name
            answered[name].append(Answered.of(evaluated))
            if len(answered[name]) == awaited[name]:
                rows += self.publish(self.scorer.rows([*answered[name], *both_splits(answered[name])], self.trial))
        return rows

    def publish_matching(self, matching: str, mixture: RetentionMatch) -> list[Row]:
        """How much of the unlearned weights is in the mixture that meets the floor of utility, as a row."""
        return self.publish({self.trial: [self.scorer.matching_row(self.trial, matching, mixture)]})

    def publish_landscape(self, readings: Sequence[Reading]) -> list[Row]:
        """Where the unlearned weights lie, as rows."""
        return self.publish({self.trial: self.scorer.landscape_rows(self.trial, readings)})

    def publish(self, by_trial: dict[str | None, list[Row]]) -> list[Row]:
        """Put rows on the board, a file per trial; all of them together."""
        keys = ("subject", "attack", "point", "split", "matching", "probe", "metric")
        for of_trial in by_trial.values():
            of_trial.sort(key=lambda row: tuple(row[key] for key in keys))
            if self.board:
                self.board.append("measurements", of_trial)
        rows = [row for of_trial in by_trial.values() for row in of_trial]
        self.rows += rows
        return rows
