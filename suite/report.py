"""Tables and plots of a store: who leads, how attacks recover, and what each knob was worth."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboard.ranking import Entry, Ranking, rank
from leaderboard.store import Board
from suite.settings import SpecError
from tasks import TASKS

FEWEST_TRIALS = 8
"""Trials below which the worth of a knob is not estimated: a handful of points says nothing about an axis."""


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
    """What each setting that differs among the trials was worth, the most first; empty with too few trials."""
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
    # A knob counts where every trial has it: the worth of a conditional one is not comparable.
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
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return [Knob(key, worth, len(values[key])) for key, worth in found.items()]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, below in value.items():
        leaves |= _leaves(below, f"{path}.{key}" if path else key)
    return leaves


def plot(ranking: Ranking, folder: Path) -> list[Path]:
    """Write the plots of a ranking as SVG: utility against forgetting, and what each attack brings back."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    stem = ranking.task.replace("/", "-")
    shown = [e for e in ranking.entries if e.forgetting.value is not None and e.utility.value is not None]
    if not shown:
        return []
    return [
        _front(ranking, shown, folder / f"{stem}-front.svg"),
        _recovery(ranking, shown, folder / f"{stem}-attacks.svg"),
    ]


# As on the page: colours that colour-blind readers tell apart, and a marker that says the grade again.
GRADES = {
    "second": ("#009E73", "s"),
    "first": ("#0072B2", "o"),
    "compressed": ("#E69F00", "D"),
    "zeroth": ("#D55E00", "^"),
    "hybrid": ("#AA4499", "*"),
}


def _front(ranking: Ranking, entries: Sequence[Entry], path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.6), layout="constrained")
    for entry in entries:
        colour, marker = GRADES.get(entry.grade or "", ("#555555", "o"))
        axes.errorbar(
            entry.utility.value,
            entry.forgetting.value,
            xerr=entry.utility.margin,
            yerr=entry.forgetting.margin,
            fmt=marker,
            color=colour,
            # filled as far as the forgetting is robust
            alpha=0.25 + 0.75 * (entry.robustness.value or 0.0),
            markersize=9,
            label=f"{entry.label} (R {entry.robustness.value or 0:.2f})",
        )
    axes.axvline(ranking.floor, linestyle="--", color="#888888", linewidth=1)
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05), xlabel="utility U", ylabel="forgetting F", title=ranking.task)
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _recovery(ranking: Ranking, entries: Sequence[Entry], path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 1.8 + 0.45 * len(entries)), layout="constrained")
    height = 0.8 / max(1, len(ranking.attacks))
    for index, attack in enumerate(ranking.attacks):
        values = [e.recovery[attack].value or 0.0 for e in entries]
        errors = [e.recovery[attack].margin for e in entries]
        places = [row + index * height for row in range(len(entries))]
        axes.barh(places, values, height=height, xerr=errors, label=attack, error_kw={"linewidth": 0.8})
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(entries))], [e.label for e in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="knowledge that the attack brings back (share of target - retrained)", title=ranking.task)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    figure.savefig(path)
    pyplot.close(figure)
    return path
