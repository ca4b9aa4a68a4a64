"""Trials on a Ray cluster through Ray Tune.

Ray only distributes trials: each worker runs one as any other runner does.

Results live in our own store, not in Ray's. A killed sweep is started again with the same command, and reuses what is
in the store.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from suite.cluster.connection import connected
from suite.cluster.placement import Placement, plan_placement
from suite.config.errors import SpecError
from suite.config.runtime import RuntimeSpec
from suite.config.settings import parse
from suite.engines.choosing import pool_resources
from suite.runners.base import OnOutcome, Outcome, TrialJob, refused, run_one
from suite.runners.search import sampler
from suite.spec.measure import MeasureSpec
from suite.spec.search_space import Plan, suggest
from suite.spec.trial import trial
from suite.spec.yaml_file import merged, nested

RESTARTS = 2
"""Times that a trial is started again after its worker or node is lost (a spot machine, the kernel's OOM killer)."""


def run_on_ray(
    jobs: Sequence[TrialJob], on_outcome: OnOutcome, *, address: str | None, concurrency: int | None
) -> None:
    """Run every job on the cluster at `address`, or on a Ray of this machine alone."""
    specs = [json.dumps(job.spec.canonical) for job in jobs]
    with _cluster(address, jobs[0]) as placement:
        config = tune.TuneConfig(max_concurrent_trials=concurrency or placement.trials, reuse_actors=True)
        _fit(jobs[0], {"spec": tune.grid_search(specs)}, config, (), on_outcome, placement)


def search_on_ray(
    plan: Plan, template: TrialJob, on_outcome: OnOutcome, *, address: str | None, concurrency: int | None
) -> None:
    """Run an Optuna search on the cluster, several trials at a time.

    Args:
        template: any job of the search, for the settings that all of them share.
    """
    names = plan.search.maximize
    search = OptunaSearch(
        space=DefineByRunSpace(plan.base, plan.search.space),
        metric=list(names) if len(names) > 1 else names[0],
        mode=["max"] * len(names) if len(names) > 1 else "max",
        sampler=sampler(plan),
        study_name=f"regrade-{uuid.uuid4().hex}",
    )
    with _cluster(address, template) as placement:
        config = tune.TuneConfig(
            search_alg=search,
            num_samples=plan.search.trials or 1,
            # Without it Tune queues a single trial at a time, and a search never fills the cluster.
            max_concurrent_trials=concurrency or placement.trials,
            reuse_actors=True,
        )
        _fit(template, None, config, names, on_outcome, placement)


class DefineByRunSpace:
    """The define-by-run space of a plan. A class, because Tune pickles its searcher."""

    def __init__(self, base: Mapping[str, Any], space: Mapping[str, Any]) -> None:
        self.base, self.space = base, space

    def __call__(self, draw: Any) -> dict[str, Any]:
        suggest(self.base, self.space, draw)
        return {"base": json.dumps(self.base)}


@contextmanager
def _cluster(address: str | None, template: TrialJob) -> Iterator[Placement]:
    """Connect to the cluster and place trials and engines on it. The engines' resources are reserved already.

    Raises:
        SpecError: no cluster at the address, or one on which no trial fits.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our rows are the log
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    with connected(address) as resources:
        placement = plan_placement(resources, pool_resources(template.measure), template.runtime)
        if placement.pool.engines:
            from suite.engines.vllm.pool import open_pool

            open_pool(placement.pool, _on_wait)
        yield placement


def _on_wait() -> None:
    print(
        "waiting for free resources on the cluster for the engines (`ray status` says what is missing)", file=sys.stderr
    )


def _fit(
    template: TrialJob,
    space: dict[str, Any] | None,
    config: Any,
    objectives: Sequence[str],
    on_outcome: OnOutcome,
    placement: Placement,
) -> None:
    context = {
        "measure": template.measure.changed(),
        "runtime": template.runtime.changed(),
        "store": str(template.store),
        "objectives": list(objectives),
    }
    trainable = tune.with_resources(
        tune.with_parameters(_trainable, context=context),
        {"cpu": template.runtime.threads, "gpu": placement.trial_gpus},
    )

    folder = template.store / "ray"
    name = uuid.uuid4().hex[:12]
    _LISTENERS[name] = on_outcome
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            verbose=0,
            callbacks=[OutcomeCallback(name)],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
        ),
    )
    try:
        tuner.fit()
    finally:
        del _LISTENERS[name]
    shutil.rmtree(folder / name, ignore_errors=True)  # all results are in the stages and on the board


_LISTENERS: dict[str, OnOutcome] = {}
"""Listeners by experiment, not in the callback: Tune pickles its callbacks, and a terminal cannot be pickled."""


class OutcomeCallback(tune.Callback):
    """Passes each outcome to the experiment's listener as it arrives."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if "outcome" in result:
            _LISTENERS[self.experiment](Outcome(**json.loads(result["outcome"])))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        file = trial.error_file
        reason = " ".join(Path(file).read_text().split())[-300:] if file else "no reason given"
        lost = Outcome("", str(trial), "failed", f"its worker was lost: {reason}", {}, {}, {}, 0.0)
        _LISTENERS[self.experiment](lost)


def _trainable(config: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    """Run one trial on a worker. Reports finite numbers only: a NaN would leave an Optuna trial running for ever."""
    outcome = _outcome(config, context)
    numbers = {name: outcome.objective(name) for name in context["objectives"]}
    tune.report({**numbers, "outcome": json.dumps(asdict(outcome))})


def _outcome(config: Mapping[str, Any], context: Mapping[str, Any]) -> Outcome:
    if "spec" in config:
        data = json.loads(config["spec"])
    else:
        data = json.loads(config["base"])
        for key in sorted(config.keys() - {"base"}, key=lambda key: not key.endswith(".name")):
            data = merged(data, nested(key, config[key]))
    try:
        spec = trial(data)
    except SpecError as error:  # the drawn settings are valid one by one but not together
        return refused(str(error))
    job = TrialJob(
        spec,
        parse(MeasureSpec, context["measure"], "measure."),
        parse(RuntimeSpec, context["runtime"], "runtime."),
        Path(context["store"]),
    )
    return run_one(job)
