"""An Optuna search in this process: ask, run, tell. Trials are cached as stages, so a repeated search is a replay."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from suite.config.errors import SpecError
from suite.runners.base import Outcome, TrialJob, refused, run_one
from suite.spec.search_space import Plan
from suite.spec.trial import TrialSpec, trial
from suite.storage.store import Store

if TYPE_CHECKING:
    import optuna

MakeJob = Callable[[TrialSpec], TrialJob]


def sampler(plan: Plan) -> optuna.samplers.BaseSampler:
    import optuna

    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return kinds[plan.search.sampler](seed=plan.search.seed)


def search_here(
    plan: Plan, make_job: MakeJob, on_outcome: Callable[[Outcome], None], on_stage: Callable[[TrialJob, str], None]
) -> None:
    """Run the search's trials one at a time. The same plan gives the same trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler(plan), directions=["maximize"] * len(plan.search.maximize))
    for _ in range(plan.search.trials or 0):
        draw = study.ask()
        try:
            job = make_job(plan.suggested(draw))
        except SpecError as error:  # the drawn settings are valid one by one but not together
            outcome = refused(str(error))
        else:
            outcome = run_one(job, partial(on_stage, job))
        study.tell(draw, [outcome.objective(name) for name in plan.search.maximize])
        on_outcome(outcome)


def some_trial(plan: Plan) -> TrialSpec:
    """A valid trial of a space, as an example for checks and for display.

    Raises:
        SpecError: a hundred draws and none valid.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    last: SpecError | None = None
    for _ in range(100):
        try:
            return plan.suggested(study.ask())
        except SpecError as error:
            last = error
    raise SpecError(f"search.space: none of 100 draws is a valid trial. The last one: {last}")


def best_trials(plan: Plan, outcomes: Sequence[Outcome], store: Store) -> list[TrialSpec]:
    """The search's finalists: the best distinct trials on dev, by the first objective, ties by the next ones."""
    finished = {outcome.trial: outcome for outcome in outcomes if outcome.trial and outcome.status != "failed"}
    best = sorted(finished.values(), key=lambda o: [-o.objective(name) for name in plan.search.maximize])
    rows = store.board.read("trials").to_pylist()
    specs = {row["trial"]: row["spec"] for row in rows}
    known = [outcome.trial for outcome in best if outcome.trial in specs]  # a row may be damaged, and left out
    return [trial(json.loads(specs[name])) for name in known[: plan.search.finalists]]
