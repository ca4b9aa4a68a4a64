"""Rankings of a store's board, and how much each setting mattered."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leaderboard.board.store import Board
from leaderboard.ranking.rank import Ranking, rank
from suite.config.errors import SpecError
from tasks import TASKS

FEWEST_TRIALS = 8
"""Below this number of trials no importance is estimated: a handful of points says nothing about a setting."""


@dataclass(frozen=True, slots=True)
class Knob:
    """How much of the score's variance over the trials one setting explains (PED-ANOVA), 0 to 1."""

    key: str
    importance: float
    values: int


def rankings(board: Board, split: str) -> list[Ranking]:
    """The ranking of every task on the board.

    Raises:
        SpecError: the board has no trials.
    """
    tasks = sorted(task for task in {row["task"] for row in board.read("trials").to_pylist()} if task in TASKS)
    if not tasks:
        raise SpecError("the board has no trials yet. Run something first: regrade run SPEC")
    return [rank(board, task, split) for task in tasks]


def knobs(board: Board, ranking: Ranking) -> list[Knob]:
    """The importance of each setting that differs among the trials, largest first; empty with too few trials."""
    scores = {
        seed.trial: value
        for entry in ranking.entries
        for seed, value in zip(entry.seeds, entry.score.seed_values, strict=False)
        if value is not None
    }
    specs = {
        row["trial"]: _leaves(json.loads(row["spec"]))
        for row in board.read("trials", {"task": ranking.task}).to_pylist()
        if row["trial"] in scores
    }
    if len(specs) < FEWEST_TRIALS:
        return []
    return _importances(specs, scores)


def _importances(specs: Mapping[str, dict[str, Any]], scores: Mapping[str, float]) -> list[Knob]:
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    values: defaultdict[str, set[str]] = defaultdict(set)
    for spec in specs.values():
        for key, value in spec.items():
            values[key].add(json.dumps(value))
    # Only settings that every trial has: the importance of a conditional one is not comparable.
    shared = [k for k, v in values.items() if len(v) > 1 and all(k in spec for spec in specs.values())]
    if not shared or len(set(scores.values())) < 2:
        return []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for trial, spec in specs.items():
        study.add_trial(
            optuna.trial.create_trial(
                params={key: json.dumps(spec[key]) for key in shared},
                distributions={key: CategoricalDistribution(sorted(values[key])) for key in shared},
                value=scores[trial],
            )
        )
    importances = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return [Knob(key, importance, len(values[key])) for key, importance in importances.items()]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, below in value.items():
        leaves |= _leaves(below, f"{path}.{key}" if path else key)
    return leaves
