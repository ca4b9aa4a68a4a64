"""The evaluation harness: runs a task's probes on models, without an attack and under each attack.

A trial and a checkpoint without a trial use the same harness. `headlines_of` computes F, R and U from their rows, as
the board does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from leaderboard.board.schema import ANCHORS, RAW, UNLEARNED
from leaderboard.board.store import Board
from leaderboard.ranking.headlines import NONE, HeadlineMeasurements, Headlines, trial_headlines
from leaderboard.ranking.levels import AttackNames, mean_over
from suite.attacks import AttackContext
from suite.config.runtime import RuntimeSpec
from suite.engines import Engine
from suite.evaluation.evaluator import Evaluation, Evaluator, evaluations_of
from suite.evaluation.publishing import Publisher
from suite.evaluation.scoring import Scorer
from suite.evaluation.trial_rows import Row
from suite.models.checkpoints import KeyedCheckpoint
from suite.models.loading import BaseModel
from suite.storage.environment import Numeric
from suite.storage.stages import StageStore
from suite.training.anchors import Anchors
from suite.trials.task_data import TaskData
from tasks.task import Split

ATTACK_SEED = 0
"""Attacks do not use the trial's seed, so that all trials share the attacked anchors."""

Models = Mapping[str, KeyedCheckpoint]
"""Models by their subject in rows."""


@dataclass(frozen=True)
class Harness:
    """Attacks and evaluates models, scores their responses and publishes the rows.

    Attributes:
        data: the task's probes and the attacks.
        scorer: turns responses into rows.
        publisher: puts rows on the board; its `rows` are all that were measured so far.
    """

    data: TaskData
    engine: Engine
    scorer: Scorer
    publisher: Publisher

    @classmethod
    def assembled(
        cls,
        data: TaskData,
        model: BaseModel,
        engine: Engine,
        stages: StageStore,
        runtime: RuntimeSpec,
        device: torch.device,
        *,
        trial: str,
        anchors: Anchors | None = None,
        target: KeyedCheckpoint | None = None,
        board: Board | None = None,
    ) -> Harness:
        """A harness for models with one tokenizer.

        Args:
            model: provides the tokenizer, the template and the context length.
            engine: runs inference.
            device: where weights are attacked.
            trial: id for the rows that are not the anchors'.
            anchors: rows carry their ids; None where there are no anchors.
            target: the model before unlearning, for attacks that need it.
            board: where rows and samples go; None to keep them in memory alone.
        """
        context = AttackContext(
            engine,
            model.encoder,
            data.full_task,
            ATTACK_SEED,
            device,
            target=target.checkpoint if target else None,
            target_key=target.key if target else "",
            block=model.block(data.task),
            gradient_checkpointing=runtime.gradient_checkpointing,
        )
        scorer = Scorer(data.task, engine, *((anchors.id, anchors.weights, anchors.scale) if anchors else ()))
        evaluator = Evaluator(engine, context, stages, Numeric.of(runtime))
        return cls(data, engine, scorer, Publisher(evaluator, scorer, trial, board))

    def beside(self, anchors: Anchors) -> Harness:
        """A harness for another pair of anchors alone, whose rows join these; who attacks them has their target."""
        evaluator = self.publisher.evaluator
        context = replace(evaluator.context, target=anchors.target.checkpoint, target_key=anchors.target.key)
        scorer = Scorer(self.data.task, self.engine, anchors.id, anchors.weights)
        publisher = replace(
            self.publisher,
            evaluator=Evaluator(self.engine, context, evaluator.store, evaluator.numeric),
            scorer=scorer,
        )
        return Harness(self.data, self.engine, scorer, publisher)

    def unattacked(
        self, models: Models, matching: str = RAW, splits: Sequence[Split] = tuple(Split)
    ) -> list[Evaluation]:
        """Evaluations of the models without an attack, on every split or on these."""
        return self._evaluations(models, matching, splits, attacked=False)

    def attacked(self, models: Models, matching: str = RAW, splits: Sequence[Split] = tuple(Split)) -> list[Evaluation]:
        """Evaluations of the models under each split's attacks."""
        return self._evaluations(models, matching, splits, attacked=True)

    def measure(self, evaluations: Sequence[Evaluation]) -> list[Row]:
        """Run evaluations in the order of their attacks, and publish the rows.

        Raises:
            CheckpointError, EngineError: a model cannot be evaluated even without an attack.
            StageError, BoardError: something stored is damaged, or the disk is full.
        """
        return self.publisher.measure(evaluations)

    def _evaluations(
        self, models: Models, matching: str, splits: Sequence[Split], *, attacked: bool
    ) -> list[Evaluation]:
        return [
            evaluation
            for split, attacks in self.data.attacks.items()
            if split in splits
            for attack in attacks
            if (attack.name != NONE) is attacked
            for subject, model in models.items()
            for evaluation in evaluations_of(subject, model, self.data.task, split, [attack], matching)
        ]


def headlines_of(rows: Iterable[Row], split: Split, attacks: Sequence[str], anchor_ids: str | None) -> Headlines:
    """F, R, U and score on a split, from the rows of the unlearned model and of its anchors, none of them mixed.

    Args:
        attacks: the attacks that R covers, by their names with their own seeds.
        anchor_ids: ids of the anchors; they say whether chance is the zero.
    """
    unlearned: list[Row] = []
    anchors: dict[str, dict[str | None, list[Row]]] = {anchor: {} for anchor in ANCHORS}
    for row in rows:
        if row["split"] == split and row["headline"] and row["matching"] == RAW:
            if row["subject"] in ANCHORS:
                anchors[row["subject"]].setdefault(row["trial"], []).append(row)  # under the id of its pair
            elif row["subject"] == UNLEARNED:
                unlearned.append(row)
    model = HeadlineMeasurements.from_rows(UNLEARNED, unlearned)
    names = AttackNames(attacks, model.attacks).of(None)
    target, retrained = (
        mean_over([HeadlineMeasurements.from_rows(anchor, of) for of in pairs.values() or [[]]], names)
        for anchor, pairs in anchors.items()
    )
    return trial_headlines(mean_over([model], names), target, retrained, anchor_ids, attacks)
