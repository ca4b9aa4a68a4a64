"""Rankings of a store's board, and how much each setting mattered."""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leaderboard.board.files import UPGRADE
from leaderboard.board.packages import package_of
from leaderboard.board.schema import Status
from leaderboard.board.store import Board
from leaderboard.board.visible import shortened
from leaderboard.peers.rows import PEER
from leaderboard.ranking.rank import Entry, Ranking, Seed, rank
from leaderboard.ranking.specs import settings_of
from suite.config.errors import MissingError
from tasks import TASKS

FEWEST_TRIALS = 8
"""Below this number of trials no importance is estimated: a handful of points says nothing about a setting."""


@dataclass(frozen=True, slots=True)
class Knob:
    """How much of the score's variance over the trials one setting explains (PED-ANOVA), 0 to 1."""

    key: str
    importance: float
    values: int


def tasks_of(board: Board, notice: Callable[[str], None]) -> list[str]:
    """The tasks of a board that can be ranked, in order.

    Args:
        notice: told about the others. Results of other suites are none of them: they are there to be read.
    """
    rows = board.read("trials", names=["task", "plugins"]).to_pylist()
    found = sorted({row["task"] for row in rows})
    packages = {row["task"]: package for row in rows if (package := package_of("task", row["plugins"]))}
    for task in found:
        if task in packages and task not in TASKS:
            package = shortened(packages[task], 70)
            absent = f"the task {shortened(task, 70)} is of {package}, which is not installed here"
            notice(f"{absent}: R covers all attacks that its rows have")
        elif task not in TASKS and not task.startswith(f"{PEER}/"):
            files = board.origins("trials", "task", task)
            more = f" and {len(files) - 1} other files" if len(files) > 1 else ""
            unknown = f"its trials of task {shortened(task, 70)} are not ranked, there is no such task here"
            notice(f"{files[0]}{more}: {unknown}. What to do: {UPGRADE}, or delete it if it is not yours")
    return [task for task in found if task in TASKS or task in packages]


def rankings(board: Board, split: str, notice: Callable[[str], None]) -> list[Ranking]:
    """The ranking of every task on the board.

    Args:
        notice: told about tasks that cannot be ranked.

    Raises:
        MissingError: the board has no trials.
    """
    tasks = tasks_of(board, notice)
    if not tasks:
        raise MissingError("the board has no trials yet. Run something first: regrade run SPEC")
    return [rank(board, task, split) for task in tasks]


def knobs(board: Board, ranking: Ranking) -> list[Knob]:
    """The importance of each setting that differs among the trials, largest first; empty with too few trials."""
    scores = {
        seed.trial: value
        for entry in ranking.entries
        for seed, value in zip(_counted(entry), entry.score.seed_values, strict=False)
        if value is not None
    }
    rows = board.read("trials", {"task": ranking.task}, ["trial", "spec"]).to_pylist()
    specs = {row["trial"]: settings_of(row["spec"]) for row in rows if row["trial"] in scores}
    specs = {trial: settings for trial, settings in specs.items() if settings}  # one that is damaged says nothing
    if len(specs) < FEWEST_TRIALS:
        return []
    with warnings.catch_warnings(action="ignore"):  # the estimate of importance is marked as experimental
        return _importances(specs, {trial: scores[trial] for trial in specs})


def _counted(entry: Entry) -> list[Seed]:
    """The seeds whose scores an entry's are: all that did not fail."""
    return [seed for seed in entry.seeds if seed.status != Status.FAILED]


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
    known = {key: importance for key, importance in importances.items() if math.isfinite(importance)}
    return [Knob(key, importance, len(values[key])) for key, importance in known.items()]
